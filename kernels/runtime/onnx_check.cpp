/* onnx_check.cpp - walks the protobuf fields of an ONNX model down to its tensors, without a protobuf library.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Source of the field numbers: onnx/onnx.proto3, IR versions 3 to 13. They are pinned there for ever. */
#include "onnx_check.h"

#include <cstdint>

namespace {

enum Kind { kModel, kGraph, kNode, kAttribute, kTensor, kSparse, kFunction, kTraining };

/* Fields that lead to tensors. */
constexpr struct {
    Kind in;
    uint64_t field;
    Kind to;
} kFields[] = {
    {kModel, 7, kGraph},         {kModel, 20, kTraining},   {kModel, 25, kFunction},   {kTraining, 1, kGraph},
    {kTraining, 2, kGraph},      {kGraph, 1, kNode},        {kGraph, 5, kTensor},      {kGraph, 15, kSparse},
    {kSparse, 1, kTensor},       {kSparse, 2, kTensor},     {kNode, 5, kAttribute},    {kFunction, 7, kNode},
    {kFunction, 11, kAttribute}, {kAttribute, 5, kTensor},  {kAttribute, 6, kGraph},   {kAttribute, 10, kTensor},
    {kAttribute, 11, kGraph},    {kAttribute, 22, kSparse}, {kAttribute, 23, kSparse},
};
constexpr uint64_t kExternalData = 13, kDataLocation = 14; /* of a tensor */
constexpr int kDeepest = 100;                              /* protobuf's own limit */

struct Span {
    const uint8_t *at, *end;

    bool varint(uint64_t *out) {
        *out = 0;
        for (int shift = 0; shift < 70 && at < end; shift += 7) {
            const uint8_t byte = *at++;
            if (shift < 64) *out |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return true;
        }
        return false;
    }
    bool skip(uint64_t count) {
        if (count > static_cast<uint64_t>(end - at)) return false;
        at += count;
        return true;
    }
};

int walk(Kind kind, Span span, int depth) {
    if (depth > kDeepest) return GRD_ONNX_UNREADABLE;
    while (span.at < span.end) {
        uint64_t tag = 0, value = 0;
        if (!span.varint(&tag)) return GRD_ONNX_UNREADABLE;
        const uint64_t field = tag >> 3;
        switch (tag & 7) {
        case 0:
            if (!span.varint(&value)) return GRD_ONNX_UNREADABLE;
            if (kind == kTensor && field == kDataLocation && value != 0) return GRD_ONNX_EXTERNAL;
            break;
        case 1:
            if (!span.skip(8)) return GRD_ONNX_UNREADABLE;
            break;
        case 5:
            if (!span.skip(4)) return GRD_ONNX_UNREADABLE;
            break;
        case 2: {
            if (!span.varint(&value)) return GRD_ONNX_UNREADABLE;
            const uint8_t *begin = span.at;
            if (!span.skip(value)) return GRD_ONNX_UNREADABLE;
            if (kind == kTensor && field == kExternalData) return GRD_ONNX_EXTERNAL;
            for (const auto &known : kFields) {
                if (known.in != kind || known.field != field) continue;
                const int inside = walk(known.to, Span{begin, span.at}, depth + 1);
                if (inside != GRD_ONNX_SELF_CONTAINED) return inside;
            }
            break;
        }
        default: /* groups: not part of ONNX */
            return GRD_ONNX_UNREADABLE;
        }
    }
    return GRD_ONNX_SELF_CONTAINED;
}

} // namespace

int grd_onnx_self_contained(const void *bytes, size_t byte_count) {
    const uint8_t *begin = static_cast<const uint8_t *>(bytes);
    return byte_count == 0 ? GRD_ONNX_UNREADABLE : walk(kModel, Span{begin, begin + byte_count}, 0);
}
