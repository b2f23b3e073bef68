/* bundle.cpp - opens a bundle folder; the entry points of the C API.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "bundle.h"

#include <set>

#include "failure.h"

namespace {

void open_into(grd_bundle *bundle) {
    const grd::Folder folder(bundle->path.c_str());
    grd::Bytes document;
    if (!folder.read_document("bundle.json", &document))
        grd::fail(GRD_ERR_BUNDLE_MISSING, "it holds no bundle.json; give the path of a name.grdb folder");
    grd::Description description = grd::description_from_bundle_json(document);
    if (folder.read_document("decision.json", &document)) grd::add_decision_json(document, &description);
    folder.check_listing(description.files); /* cheap, so before gigabytes are hashed */

    std::set<std::string> wanted;
    for (const grd::Engine &engine : description.engines) wanted.insert(engine.file);
    for (const auto &file : description.files) {
        const bool keep = wanted.count(file.first) > 0;
        grd::Bytes bytes = folder.read_listed(file.first, file.second, keep);
        if (keep) bundle->engine_bytes[file.first] = std::move(bytes);
    }
    bundle->description = std::move(description);
    bundle->verified = true;
}

const grd::Engine *engine_at(const grd_bundle *bundle, int32_t index) {
    if (bundle == nullptr || !bundle->verified || index < 0) return nullptr;
    const auto &engines = bundle->description.engines;
    return static_cast<size_t>(index) < engines.size() ? &engines[static_cast<size_t>(index)] : nullptr;
}

} // namespace

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
            open_into(bundle);
        } catch (const grd::Failure &failure) {
            bundle->engine_bytes.clear();
            grd::fail(failure.status, "bundle " + bundle->path + ": " + failure.message);
        }
        return GRD_OK;
    });
}

void grd_bundle_close(grd_bundle *bundle) { delete bundle; }

const char *grd_bundle_message(const grd_bundle *bundle) { return bundle == nullptr ? "" : bundle->message.c_str(); }

grd_status grd_bundle_get_info(const grd_bundle *bundle, grd_bundle_info *out) {
    if (bundle == nullptr || !bundle->verified || out == nullptr) return GRD_ERR_ARGUMENT;
    if (out->struct_size < sizeof(grd_bundle_info)) return GRD_ERR_STRUCT_SIZE;
    const uint32_t struct_size = out->struct_size;
    *out = bundle->description.info;
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
