/* status.cpp - version, names of statuses, views of frames.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "grd_edge.h"

#define GRD_TEXT_OF(value) #value
#define GRD_TEXT(value) GRD_TEXT_OF(value)

int32_t grd_version(void) { return GRD_VERSION_MAJOR * 10000 + GRD_VERSION_MINOR * 100 + GRD_VERSION_PATCH; }

const char *grd_version_string(void) {
    return GRD_TEXT(GRD_VERSION_MAJOR) "." GRD_TEXT(GRD_VERSION_MINOR) "." GRD_TEXT(GRD_VERSION_PATCH);
}

const char *grd_status_name(grd_status status) {
    switch (status) {
#define GRD_CASE(name) \
    case name: \
        return #name
        GRD_CASE(GRD_OK);
        GRD_CASE(GRD_ERR_ARGUMENT);
        GRD_CASE(GRD_ERR_STRUCT_SIZE);
        GRD_CASE(GRD_ERR_DTYPE);
        GRD_CASE(GRD_ERR_SHAPE);
        GRD_CASE(GRD_ERR_STRIDE);
        GRD_CASE(GRD_ERR_SPACE);
        GRD_CASE(GRD_ERR_VARIANT);
        GRD_CASE(GRD_ERR_BUFFER);
        GRD_CASE(GRD_ERR_BUNDLE_MISSING);
        GRD_CASE(GRD_ERR_BUNDLE_MALFORMED);
        GRD_CASE(GRD_ERR_BUNDLE_SCHEMA);
        GRD_CASE(GRD_ERR_BUNDLE_HASH);
        GRD_CASE(GRD_ERR_BUNDLE_CONTENT);
        GRD_CASE(GRD_ERR_BUNDLE_ENGINE);
        GRD_CASE(GRD_ERR_BACKEND_MISSING);
        GRD_CASE(GRD_ERR_BACKEND_ABI);
        GRD_CASE(GRD_ERR_BACKEND_LIBRARY);
        GRD_CASE(GRD_ERR_ENGINE_OPEN);
        GRD_CASE(GRD_ERR_ENGINE_RUN);
        GRD_CASE(GRD_ERR_ENGINE_MISMATCH);
        GRD_CASE(GRD_ERR_DEVICE);
        GRD_CASE(GRD_ERR_FRAME_SIZE);
        GRD_CASE(GRD_ERR_FRAME_CHANNELS);
        GRD_CASE(GRD_ERR_MEMORY);
        GRD_CASE(GRD_ERR_IO);
        GRD_CASE(GRD_ERR_THREAD);
        GRD_CASE(GRD_ERR_STREAM_FULL);
        GRD_CASE(GRD_ERR_STREAM_EMPTY);
        GRD_CASE(GRD_ERR_STREAM_TIMEOUT);
        GRD_CASE(GRD_ERR_INTERNAL);
#undef GRD_CASE
    default:
        return "GRD_ERR_UNKNOWN";
    }
}

grd_view grd_view_of_frame(const void *data, int32_t dtype, int64_t h, int64_t w, int64_t c, int64_t row_stride_bytes) {
    const int64_t item = dtype == GRD_UINT8 ? 1 : dtype == GRD_FLOAT32 ? 4 : 2;
    grd_view view = {};
    view.data = const_cast<void *>(data); /* input views are never written */
    view.dtype = dtype;
    view.space = GRD_SPACE_HOST;
    view.extent[0] = 1;
    view.extent[1] = c;
    view.extent[2] = h;
    view.extent[3] = w;
    const int64_t row = row_stride_bytes != 0 ? row_stride_bytes : w * c * item;
    view.stride_bytes[0] = row * h;
    view.stride_bytes[1] = item;
    view.stride_bytes[2] = row;
    view.stride_bytes[3] = c * item;
    return view;
}
