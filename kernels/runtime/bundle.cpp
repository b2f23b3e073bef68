/* bundle.cpp - opens a bundle folder; the entry points of the C API.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "bundle.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <set>

#include "../patchify/patchify.h"
#include "failure.h"

namespace {

constexpr int kAttempts = 20;

void open_into(const grd::Folder &folder, grd_bundle *bundle) {
    grd::Bytes document;
    if (!folder.read_document("bundle.json", &document))
        grd::fail(GRD_ERR_BUNDLE_MISSING, "it holds no bundle.json; give the path of a name.grdb folder");
    grd::Description description = grd::description_from_bundle_json(document);
    if (folder.read_document("decision.json", &document)) grd::add_decision_json(document, &description);
    folder.check_listing(description.files); /* cheap, so before gigabytes are hashed */

    std::set<std::string> wanted;
    for (const grd::Engine &engine : description.engines) wanted.insert(engine.file);
    if (!description.roi_file.empty()) wanted.insert(description.roi_file);
    for (const auto &file : description.files) {
        const bool keep = wanted.count(file.first) > 0;
        grd::Bytes bytes = folder.read_listed(file.first, file.second, keep);
        if (keep) bundle->kept_bytes[file.first] = std::move(bytes);
    }
    if (!description.roi_file.empty()) {
        bundle->roi = grd::mask_from_pgm(bundle->kept_bytes[description.roi_file], description.roi_file);
        description.info.roi_h = static_cast<int32_t>(bundle->roi.h);
        description.info.roi_w = static_cast<int32_t>(bundle->roi.w);
    }
    bundle->description = std::move(description);
    bundle->verified = true;
}

/* False when another writer put a new bundle in this one's place while it was read. */
bool open_once(grd_bundle *bundle, bool last) {
    const grd::Folder folder(bundle->path.c_str());
    try {
        open_into(folder, bundle);
        return true;
    } catch (const grd::Failure &) {
        bundle->kept_bytes.clear();
        if (last || !folder.moved(bundle->path.c_str())) throw;
        return false;
    }
}

const grd::Engine *engine_at(const grd_bundle *bundle, int32_t index) {
    if (bundle == nullptr || !bundle->verified || index < 0) return nullptr;
    const auto &engines = bundle->description.engines;
    return static_cast<size_t>(index) < engines.size() ? &engines[static_cast<size_t>(index)] : nullptr;
}

const grd::Region *region_at(const grd_bundle *bundle, int32_t index) {
    if (bundle == nullptr || !bundle->verified || index < 0) return nullptr;
    const auto &regions = bundle->description.regions;
    return static_cast<size_t>(index) < regions.size() ? &regions[static_cast<size_t>(index)] : nullptr;
}

/* Number of 1 to 5 digits without leading zeros that `end` follows; 0 when there is none. */
int64_t header_number(const uint8_t **at, const uint8_t *stop, char end) {
    int64_t value = 0;
    for (int digits = 0; *at < stop && digits < 6; ++*at, ++digits) {
        const uint8_t c = **at;
        if (c == static_cast<uint8_t>(end)) return ++*at, value;
        if (c < '0' || c > '9' || (digits == 0 && c == '0')) return 0;
        value = value * 10 + (c - '0');
    }
    return 0;
}

} // namespace

grd::Mask grd::mask_from_pgm(const Bytes &bytes, const std::string &name) {
    const uint8_t *at = bytes.data.get(), *stop = at + bytes.count;
    Mask mask;
    if (bytes.count >= 3 && std::memcmp(at, "P5\n", 3) == 0) {
        at += 3;
        mask.w = header_number(&at, stop, ' ');
        mask.h = mask.w > 0 ? header_number(&at, stop, '\n') : 0;
    }
    const bool sized = mask.h > 0 && mask.h <= kMaxSidePx && mask.w <= kMaxSidePx;
    if (!sized || stop - at < 4 || std::memcmp(at, "255\n", 4) != 0)
        fail(GRD_ERR_BUNDLE_MALFORMED, name + text(" is not a binary PGM of maximum 255 with sides of 1 to %lld px; "
                                                   "rebuild the bundle",
                                                   static_cast<long long>(kMaxSidePx)));
    at += 4;
    if (stop - at != mask.h * mask.w)
        fail(GRD_ERR_BUNDLE_MALFORMED,
             name + text(" has %lld pixels, expected %lldx%lld; rebuild the bundle", static_cast<long long>(stop - at),
                         static_cast<long long>(mask.w), static_cast<long long>(mask.h)));
    mask.pixels = at;
    mask.stride_y = mask.w;
    mask.stride_x = 1;
    return mask;
}

grd_status grd_bundle_open(const char *path, grd_bundle **out) {
    if (out == nullptr) return GRD_ERR_ARGUMENT;
    *out = nullptr;
    grd_bundle *bundle = new (std::nothrow) grd_bundle();
    if (bundle == nullptr) return GRD_ERR_MEMORY;
    *out = bundle;
    return grd::guarded(&bundle->message, [&]() -> grd_status {
        if (path == nullptr || path[0] == '\0')
            grd::fail(GRD_ERR_ARGUMENT, "path is empty; give the path of a name.grdb folder");
        bundle->path = path;
        try {
            for (int left = kAttempts; !open_once(bundle, left == 1); --left) {
            }
        } catch (const grd::Failure &failure) {
            grd::fail(failure.status, "bundle " + bundle->path + ": " + failure.message);
        }
        return GRD_OK;
    });
}

void grd_bundle_close(grd_bundle *bundle) { delete bundle; }

const char *grd_bundle_message(const grd_bundle *bundle) { return bundle == nullptr ? "" : bundle->message.c_str(); }

grd_status grd_bundle_get_info(const grd_bundle *bundle, grd_bundle_info *out) {
    if (bundle == nullptr || !bundle->verified || out == nullptr) return GRD_ERR_ARGUMENT;
    const uint32_t struct_size = out->struct_size;
    if (struct_size < offsetof(grd_bundle_info, head)) return GRD_ERR_STRUCT_SIZE;
    std::memcpy(out, &bundle->description.info, std::min(size_t{struct_size}, sizeof(grd_bundle_info)));
    out->struct_size = struct_size;
    return GRD_OK;
}

const char *grd_bundle_engine_target(const grd_bundle *bundle, int32_t index) {
    const grd::Engine *engine = engine_at(bundle, index);
    return engine == nullptr ? nullptr : engine->target.c_str();
}

const char *grd_bundle_engine_precision(const grd_bundle *bundle, int32_t index) {
    const grd::Engine *engine = engine_at(bundle, index);
    return engine == nullptr ? nullptr : engine->precision.c_str();
}

const char *grd_bundle_region_name(const grd_bundle *bundle, int32_t index) {
    const grd::Region *region = region_at(bundle, index);
    return region == nullptr ? nullptr : region->name.c_str();
}

float grd_bundle_region_threshold(const grd_bundle *bundle, int32_t index) {
    const grd::Region *region = region_at(bundle, index);
    return region == nullptr ? std::numeric_limits<float>::quiet_NaN() : region->threshold;
}
