/* failure.h - how the runtime fails inside, and how that becomes a status and a sentence at the C border.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_FAILURE_H
#define GRD_FAILURE_H

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "grd_edge.h"

namespace grd {

/* One clear sentence: what failed, the value found, what was expected, what to do. */
struct Failure {
    grd_status status;
    std::string message;
};

/* printf into a string. */
std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));

[[noreturn]] void fail(grd_status status, std::string message);

/* Text from outside for use in a message: control characters become '?', long text is cut. */
std::string quoted(const std::string &value);

/* Runs work; whatever it throws becomes a status, with the sentence in *message. Nothing passes. */
template <class Work> grd_status guarded(std::string *message, Work &&work) noexcept {
    grd_status status = GRD_ERR_INTERNAL;
    try {
        try {
            return std::forward<Work>(work)();
        } catch (const Failure &failure) {
            status = failure.status;
            *message = failure.message;
        } catch (const std::bad_alloc &) {
            status = GRD_ERR_MEMORY;
            *message = "out of memory; close other handles or use a smaller batch";
        } catch (const std::exception &error) {
            *message = std::string("unexpected error, please report it: ") + error.what();
        } catch (...) {
            *message = "unexpected error of unknown kind, please report it";
        }
    } catch (...) { /* no memory for the sentence: the status must do */
    }
    return status;
}

} // namespace grd
#endif
