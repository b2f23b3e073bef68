/* failure.cpp - making the sentences of failures. Part of the library and of each backend.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "failure.h"

#include <cstdarg>
#include <cstdio>

namespace grd {

std::string text(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int length = std::vsnprintf(nullptr, 0, format, args);
    va_end(args);
    std::string out(length > 0 ? static_cast<size_t>(length) : 0, '\0');
    if (length > 0) std::vsnprintf(&out[0], out.size() + 1, format, again);
    va_end(again);
    return out;
}

void fail(grd_status status, std::string message) { throw Failure{status, std::move(message)}; }

std::string quoted(const std::string &value) {
    constexpr size_t longest = 120;
    std::string out = "\"";
    for (size_t i = 0; i < value.size() && i < longest; ++i) {
        const unsigned char c = static_cast<unsigned char>(value[i]);
        out += c < 0x20 || c == 0x7f ? '?' : value[i];
    }
    return out + (value.size() > longest ? "...\"" : "\"");
}

} // namespace grd
