/* tensorrt_rules.h - whether an engine file of TensorRT can run here, told before the vendor's library sees it. Not
 * public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Every function throws Failure. */
#ifndef GRD_TENSORRT_RULES_H
#define GRD_TENSORRT_RULES_H

#include <cstddef>
#include <cstdint>
#include <string>

#include "grd_edge.h"

namespace grd {

enum class TensorRtKind { kClassic, kRtx };

const char *product_of(TensorRtKind kind); /* "TensorRT", "TensorRT-RTX" */

/* Up to four numbers joined by points. */
struct TensorRtVersion {
    int part[4] = {0, 0, 0, 0};
    int parts = 0; /* 0: none, or not a version */

    std::string text() const;
};

TensorRtVersion version_from_text(const char *text);

/* Looks at the first bytes: too short, an engine of the other product, or none at all is GRD_ERR_ENGINE_OPEN. Returns
 * the version in the header. */
TensorRtVersion check_engine_file(TensorRtKind kind, const void *bytes, size_t byte_count);

/* desc: what the bundle says. built: what the file says, which counts where the bundle says nothing. */
void check_engine_version(TensorRtKind kind, const grd_engine_desc &desc, const TensorRtVersion &built,
                          const TensorRtVersion &running);

/* device: its name, for the message. */
void check_engine_device(TensorRtKind kind, const grd_engine_desc &desc, int major, int minor,
                         const std::string &device);

/* "; rebuild it here: grd-edge build engine BUNDLE --target <target>" */
std::string rebuild_for(const std::string &target);

} // namespace grd
#endif
