/* backend_entries.h - the functions of a backend's table, over a class that throws Failure. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_BACKEND_ENTRIES_H
#define GRD_BACKEND_ENTRIES_H

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "failure.h"
#include "grd_edge.h"

namespace grd {

/* Runs work at the C border of a backend; what it throws becomes a status and a text for the caller. */
template <class Work> grd_status told(char *message, size_t message_bytes, Work &&work) noexcept {
    std::string said;
    const grd_status status = guarded(&said, std::forward<Work>(work));
    if (message != nullptr && message_bytes > 0) std::snprintf(message, message_bytes, "%s", said.c_str());
    return status;
}

/* desc in the terms of this release: what an older library does not give is NULL, or as the patch. */
inline grd_engine_desc engine_desc_of(const grd_engine_desc *desc) {
    grd_engine_desc known = {};
    std::memcpy(&known, desc, desc->struct_size < sizeof known ? desc->struct_size : sizeof known);
    if (known.output_c == 0) known.output_c = known.channels;
    if (known.output_h == 0) known.output_h = known.patch_h;
    if (known.output_w == 0) known.output_w = known.patch_w;
    return known;
}

/* Engine: Engine(desc), open(desc), infer(x, x_hat), version(). */
template <class Engine> struct BackendEntries {
    static grd_status engine_open(const grd_engine_desc *desc, void **engine, char *message, size_t message_bytes) {
        return told(message, message_bytes, [&]() -> grd_status {
            /* The first release of the structure ended there. */
            if (desc == nullptr || engine == nullptr ||
                desc->struct_size < offsetof(grd_engine_desc, library_version))
                fail(GRD_ERR_ARGUMENT, "engine_open needs a grd_engine_desc and a place for the engine");
            const grd_engine_desc known = engine_desc_of(desc);
            std::unique_ptr<Engine> opened(new Engine(known));
            opened->open(known);
            *engine = opened.release();
            return GRD_OK;
        });
    }
    static grd_status engine_infer(void *engine, const grd_view *x, const grd_view *x_hat, char *message,
                                   size_t message_bytes) {
        return told(message, message_bytes, [&]() -> grd_status {
            if (engine == nullptr || x == nullptr || x_hat == nullptr)
                fail(GRD_ERR_ARGUMENT, "engine_infer needs an engine and two views");
            static_cast<Engine *>(engine)->infer(*x, *x_hat);
            return GRD_OK;
        });
    }
    static const char *engine_version(void *engine) {
        return engine != nullptr ? static_cast<Engine *>(engine)->version() : "";
    }
    static void engine_close(void *engine) { delete static_cast<Engine *>(engine); }
};

} // namespace grd
#endif
