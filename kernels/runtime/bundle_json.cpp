/* bundle_json.cpp - bundle.json and decision.json: syntax, seal, and every key of the schema.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <cfloat>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <set>

#include "nlohmann/json.hpp"

#include "../patchify/patchify.h"
#include "bundle.h"
#include "failure.h"
#include "sha256.h"

namespace grd {
namespace {

using Json = nlohmann::json;

constexpr int kSchema = 1;
constexpr int kLeastPatchPx = 11; /* one SSIM window */
constexpr int kMostPatchPx = 1 << 14;
constexpr int kMostScalePx = 1 << 16;
constexpr size_t kMostFiles = 1000;
constexpr size_t kMostEngines = 100;
constexpr size_t kMostRegions = 64;
constexpr size_t kMostAreas = 64; /* of a region */
constexpr int kDeepest = 16; /* the schema needs 4; what is free in content may nest, but not without end */

[[noreturn]] void malformed(const std::string &message) { fail(GRD_ERR_BUNDLE_MALFORMED, message); }

bool is_digest(const std::string &value) {
    return value.size() == 64 && value.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/* A part of a document, with the name that messages give it. */
class Node {
public:
    Node(const Json &json, std::string name) : json_(json), name_(std::move(name)) {}

    const std::string &name() const { return name_; }
    const Json &json() const { return json_; }

    /* An object with exactly these keys; the optional ones may be absent. */
    const Node &keys(std::initializer_list<const char *> wanted,
                     std::initializer_list<const char *> optional = {}) const {
        object();
        for (const char *key : wanted)
            if (!json_.contains(key)) malformed(name_ + " has no key \"" + key + "\"; rebuild the bundle");
        for (const auto &item : json_.items()) {
            bool known = false;
            for (const char *key : wanted) known = known || item.key() == key;
            for (const char *key : optional) known = known || item.key() == key;
            if (!known)
                malformed(name_ + " has the unknown key " + quoted(item.key()) + "; remove it or rebuild the bundle");
        }
        return *this;
    }
    const Node &object() const {
        if (!json_.is_object()) wrong("an object");
        return *this;
    }
    const Node &array() const {
        if (!json_.is_array()) wrong("an array");
        return *this;
    }
    Node at(const std::string &key) const { return Node(json_.at(key), name_ + "." + key); }
    Node at(size_t index) const { return Node(json_[index], name_ + text("[%zu]", index)); }
    bool has(const char *key) const { return json_.contains(key); }
    /* An array of so many elements. */
    const Node &array(size_t least, size_t most) const {
        if (array().json_.size() < least || json_.size() > most) wrong(text("%zu to %zu elements", least, most));
        return *this;
    }

    int64_t integer(int64_t least, int64_t most) const {
        const std::string wanted =
            text("an integer from %lld to %lld", static_cast<long long>(least), static_cast<long long>(most));
        if (!json_.is_number_integer()) wrong(wanted);
        if (json_.is_number_unsigned() && json_.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) wrong(wanted);
        const int64_t value = json_.get<int64_t>();
        if (value < least || value > most) wrong(wanted);
        return value;
    }
    int32_t integer32(int64_t least, int64_t most = INT32_MAX) const {
        return static_cast<int32_t>(integer(least, most));
    }
    double number() const {
        if (!json_.is_number()) wrong("a number");
        return json_.get<double>();
    }
    const std::string &string() const {
        if (!json_.is_string()) wrong("a string");
        return json_.get_ref<const std::string &>();
    }
    /* A member that is free in content: "" unless it is a string. */
    std::string text_or_empty(const char *key) const {
        const auto found = json_.find(key);
        return found != json_.end() && found->is_string() ? found->get<std::string>() : "";
    }
    /* A string for people, of so many characters at most. */
    const std::string &label(size_t longest = 4096) const {
        size_t characters = 0; /* UTF-8, checked by the parser: bytes that go on are 10xxxxxx */
        for (const char c : string()) characters += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
        if (characters < 1 || characters > longest) wrong(text("1 to %zu characters", longest));
        return string();
    }
    /* A string that names something: 1 to 64 characters of the given set. */
    const std::string &word(const char *characters) const {
        const std::string &value = string();
        if (value.empty() || value.size() > 64 || value.find_first_not_of(characters) != std::string::npos)
            wrong(std::string("1 to 64 characters of ") + characters);
        return value;
    }
    /* Index of the value in a list of choices. */
    int32_t choice(std::initializer_list<const char *> choices) const {
        int32_t index = 0;
        std::string wanted;
        for (const char *one : choices) {
            if (json_.is_string() && json_.get_ref<const std::string &>() == one) return index;
            wanted += (index++ > 0 ? " or \"" : "\"") + std::string(one) + "\"";
        }
        wrong(wanted);
    }
    [[noreturn]] void wrong(const std::string &wanted) const {
        std::string found = json_.dump(-1, ' ', true, Json::error_handler_t::replace);
        if (found.size() > 80) found = found.substr(0, 80) + "...";
        malformed(name_ + " is " + found + ", expected " + wanted + "; rebuild the bundle");
    }

private:
    const Json &json_;
    std::string name_;
};

/* What a document must hold to before it is built: syntax, depth, no key twice. The parser's own callback could look at
 * this, too, but then building takes time that grows with the square of an array's length. */
class Rules final : public Json::json_sax_t {
public:
    explicit Rules(const char *name) : name_(name) {}

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(Json::number_integer_t) override { return true; }
    bool number_unsigned(Json::number_unsigned_t) override { return true; }
    bool number_float(Json::number_float_t, const std::string &) override { return true; }
    bool string(std::string &) override { return true; }
    bool binary(Json::binary_t &) override { return true; }
    bool start_array(size_t) override { return descend(); }
    bool end_array() override { return ascend(); }
    bool start_object(size_t) override {
        keys_.emplace_back();
        return descend();
    }
    bool end_object() override {
        keys_.pop_back();
        return ascend();
    }
    bool key(std::string &key) override {
        if (!keys_.back().insert(key).second)
            malformed(std::string(name_) + " has the key " + grd::quoted(key) + " twice; rebuild the bundle");
        return true;
    }
    bool parse_error(size_t, const std::string &, const Json::exception &error) override {
        malformed(std::string(name_) + " is not valid JSON " + grd::quoted(error.what()) + "; rebuild the bundle");
    }

private:
    bool descend() {
        if (depth_++ >= kDeepest) malformed(text("%s nests deeper than %d levels; rebuild the bundle", name_, kDeepest));
        return true;
    }
    bool ascend() {
        --depth_;
        return true;
    }

    const char *name_;
    int depth_ = 0;
    std::vector<std::set<std::string>> keys_; /* of the objects that are open */
};

/* Rule 1, but for the size, which the file layer checks before it reads. */
Json document_from_bytes(const Bytes &bytes, const char *name) {
    const char *begin = reinterpret_cast<const char *>(bytes.data.get()), *end = begin + bytes.count;
    if (bytes.count >= 3 && std::memcmp(begin, "\xEF\xBB\xBF", 3) == 0)
        malformed(std::string(name) + " begins with a byte order mark, expected plain UTF-8; save it without");
    if (std::memchr(begin, 0, bytes.count) != nullptr) /* which the parser would take for the end of the document */
        malformed(std::string(name) + " holds a zero byte, expected JSON; copy the bundle again or rebuild it");
    Rules rules(name);
    Json::sax_parse(begin, end, &rules);
    return Json::parse(begin, end);
}

/* Rules 2 and 3. The schema comes first: a newer one may seal in another way. */
std::string checked_seal(const Json &document, const Bytes &bytes, const char *name) {
    const Node root(document, name);
    root.object();
    if (!document.contains("schema"))
        malformed(std::string(name) + " has no key \"schema\"; it is not a bundle's file");
    const Node schema = root.at("schema");
    if (schema.integer(1, INT64_MAX) > kSchema)
        fail(GRD_ERR_BUNDLE_SCHEMA,
             schema.name() + " is " + schema.json().dump() +
                 text(", this version reads %d: written by a newer grd-edge; update grd-edge", kSchema));
    if (!document.contains("seal")) malformed(std::string(name) + " has no key \"seal\"; rebuild the bundle");
    const std::string seal = root.at("seal").string();
    if (!is_digest(seal)) root.at("seal").wrong("64 lower-case hex digits");

    std::string content(reinterpret_cast<const char *>(bytes.data.get()), bytes.count);
    const size_t at = content.find(seal);
    if (at == std::string::npos || content.find(seal, at + 1) != std::string::npos)
        malformed(std::string(name) + " does not hold its seal exactly once; rebuild the bundle");
    content.replace(at, 64, 64, '0');
    grd_sha256 hash;
    char digits[65];
    grd_sha256_begin(&hash);
    grd_sha256_add(&hash, content.data(), content.size());
    grd_sha256_end(&hash, digits);
    if (seal != digits)
        fail(GRD_ERR_BUNDLE_HASH, std::string(name) + " has the seal " + seal.substr(0, 12) + ".., its content gives " +
                                      std::string(digits, 12) +
                                      "..: it was changed after it was written; copy the bundle again or rebuild it");
    return seal;
}

/* Rule 4, the part about names. */
bool is_plain_path(const std::string &path) {
    size_t begin = 0;
    int components = 0;
    while (true) {
        const size_t end = path.find('/', begin);
        const std::string part = path.substr(begin, end == std::string::npos ? end : end - begin);
        if (part.empty() || part[0] == '.' || part.size() > 255) return false;
        if (part.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") !=
            std::string::npos)
            return false;
        if (++components > 3) return false;
        if (end == std::string::npos) return true;
        begin = end + 1;
    }
}

void read_files(const Node &node, Description *out) {
    const size_t count = node.object().json().size();
    if (count < 1 || count > kMostFiles)
        malformed(text("files lists %zu files, expected 1 to %zu; rebuild the bundle", count, kMostFiles));
    for (const auto &item : node.json().items()) {
        const std::string &path = item.key();
        if (!is_plain_path(path) || path == "bundle.json" || path == "decision.json")
            fail(GRD_ERR_BUNDLE_CONTENT,
                 "files lists " + quoted(path) +
                     ", expected 1 to 3 plain names of letters, digits, _ . and - joined by /; rebuild the bundle");
        const Node entry(item.value(), "files[" + quoted(path) + "]");
        entry.keys({"sha256", "bytes"});
        ListedFile file;
        file.sha256 = entry.at("sha256").string();
        if (!is_digest(file.sha256)) entry.at("sha256").wrong("64 lower-case hex digits");
        file.byte_count = entry.at("bytes").integer(0, INT64_MAX);
        out->files[path] = file;
    }
}

void read_geometry(const Node &node, grd_cut_params *out) {
    node.keys({"scale_px", "patch_h", "patch_w", "stride_y", "stride_x", "channels", "padding"});
    out->struct_size = sizeof(*out);
    out->scale_px = node.at("scale_px").json().is_null() ? 0 : node.at("scale_px").integer32(1, kMostScalePx);
    out->patch_h = node.at("patch_h").integer32(kLeastPatchPx, kMostPatchPx);
    out->patch_w = node.at("patch_w").integer32(kLeastPatchPx, kMostPatchPx);
    out->stride_y = node.at("stride_y").integer32(1, out->patch_h);
    out->stride_x = node.at("stride_x").integer32(1, out->patch_w);
    out->channels = node.at("channels").integer32(1);
    if (out->channels != 1 && out->channels != 3) node.at("channels").wrong("1 or 3");
    out->padding = node.at("padding").choice({"error", "reflect"});
    static_assert(GRD_PADDING_ERROR == 0 && GRD_PADDING_REFLECT == 1, "order of the choices above");
}

void read_engines(const Node &node, Description *out) {
    constexpr const char *kWord = "abcdefghijklmnopqrstuvwxyz0123456789_-";
    constexpr const char *kBackend = "abcdefghijklmnopqrstuvwxyz0123456789_"; /* it becomes part of a file name */
    std::set<std::pair<std::string, std::string>> seen;
    const size_t count = node.array().json().size();
    if (count > kMostEngines)
        malformed(text("engines holds %zu engines, expected at most %zu; rebuild the bundle", count, kMostEngines));
    for (size_t i = 0; i < count; ++i) {
        const Node entry(node.json()[i], text("engines[%zu]", i));
        entry.keys({"target", "precision", "backend", "file", "format", "fingerprint"});
        Engine engine;
        engine.target = entry.at("target").word(kWord);
        engine.precision = entry.at("precision").word(kWord);
        engine.backend = entry.at("backend").word(kBackend);
        engine.format = entry.at("format").word(kWord);
        engine.file = entry.at("file").string();
        const Node fingerprint = entry.at("fingerprint");
        fingerprint.object();
        engine.version = fingerprint.text_or_empty("version");
        engine.capabilities = fingerprint.text_or_empty("compute_capabilities");
        engine.compatibility = fingerprint.text_or_empty("compatibility");
        if (out->files.count(engine.file) == 0) entry.at("file").wrong("a key of files");
        if (!seen.emplace(engine.target, engine.precision).second)
            malformed("engines holds " + engine.target + " " + engine.precision + " twice; rebuild the bundle");
        out->engines.push_back(std::move(engine));
    }
    for (const auto &choice : out->chosen)
        if (seen.count({choice.first, choice.second}) == 0)
            malformed("precision.chosen takes " + quoted(choice.second) + " for " + quoted(choice.first) +
                      ", but engines holds no such engine; rebuild the bundle");
}

/* Areas of a region: [y, x, h, w] inside the frame. */
void read_areas(const Node &node, int32_t frame_h, int32_t frame_w, Region *out) {
    const size_t count = node.array(1, kMostAreas).json().size();
    for (size_t i = 0; i < count; ++i) {
        const Node entry = node.at(i);
        entry.array(4, 4);
        Area area;
        area.y = entry.at(size_t{0}).integer32(0, frame_h - 1);
        area.x = entry.at(size_t{1}).integer32(0, frame_w - 1);
        area.h = entry.at(size_t{2}).integer32(1, frame_h - area.y);
        area.w = entry.at(size_t{3}).integer32(1, frame_w - area.x);
        out->areas.push_back(area);
    }
}

void read_regions(const Node &root, Description *out) {
    const Node node = root.at("regions");
    const size_t count = node.array(1, kMostRegions).json().size();
    if (root.has("frame_px")) {
        const Node frame = root.at("frame_px");
        frame.array(2, 2);
        out->frame_h = frame.at(size_t{0}).integer32(1, kMaxSidePx);
        out->frame_w = frame.at(size_t{1}).integer32(1, kMaxSidePx);
    }
    bool bounded = false;
    for (size_t i = 0; i < count; ++i) {
        const Node entry = node.at(i);
        entry.keys({"name", "threshold"}, {"areas"});
        Region region;
        region.name = entry.at("name").label(64);
        for (const Region &other : out->regions)
            if (other.name == region.name) entry.at("name").wrong("a name that no other region has");
        const double threshold = entry.at("threshold").number();
        if (!(std::fabs(threshold) <= FLT_MAX) || static_cast<double>(static_cast<float>(threshold)) != threshold)
            entry.at("threshold").wrong("a finite number that FP32 represents exactly");
        region.threshold = static_cast<float>(threshold);
        if (entry.has("areas")) {
            if (out->frame_h == 0) malformed("decision.json has areas and no frame_px; run `grd-edge recalibrate`");
            read_areas(entry.at("areas"), out->frame_h, out->frame_w, &region);
            bounded = true;
        }
        out->regions.push_back(std::move(region));
    }
    if (out->frame_h != 0 && !bounded)
        malformed("decision.json has frame_px and no areas; run `grd-edge recalibrate`");
}

} // namespace

Description description_from_bundle_json(const Bytes &bytes) {
    const Json document = document_from_bytes(bytes, "bundle.json");
    Description out;
    out.seal = checked_seal(document, bytes, "bundle.json");
    const Node root(document, "bundle.json");
    root.keys({"schema", "name", "head", "files", "geometry", "score", "precision", "engines", "provenance", "seal"},
              {"roi"});
    root.at("name").label();
    out.info.head = root.at("head").choice({"reconstruction", "score_map"});
    static_assert(GRD_HEAD_RECONSTRUCTION == 0 && GRD_HEAD_SCORE_MAP == 1, "order of the choices above");
    root.at("provenance").object();
    read_files(root.at("files"), &out);
    if (root.has("roi")) {
        out.roi_file = root.at("roi").string();
        if (out.files.count(out.roi_file) == 0) root.at("roi").wrong("a key of files");
    }
    read_geometry(root.at("geometry"), &out.info.cut);

    const Node score = root.at("score");
    score.keys({"decides", "window", "local_window_px"});
    out.info.decides_local = score.at("decides").choice({"phi", "phi_local"});
    out.info.window = score.at("window").choice({"gaussian", "box"});
    static_assert(GRD_WINDOW_GAUSSIAN == 0 && GRD_WINDOW_BOX == 1, "order of the choices above");
    out.info.local_window_px = score.at("local_window_px").integer32(1, kMostPatchPx);

    const Node precision = root.at("precision");
    precision.keys({"chosen", "tried", "why"});
    for (const auto &item : precision.at("chosen").object().json().items())
        out.chosen[item.key()] = Node(item.value(), "bundle.json.precision.chosen." + quoted(item.key())).string();
    const Node tried = precision.at("tried");
    for (size_t i = 0; i < tried.array().json().size(); ++i)
        Node(tried.json()[i], text("precision.tried[%zu]", i)).object();
    precision.at("why").string();
    read_engines(root.at("engines"), &out);

    out.info.struct_size = sizeof(out.info);
    out.info.schema = kSchema;
    out.info.engine_count = static_cast<int32_t>(out.engines.size());
    out.info.threshold = std::numeric_limits<float>::quiet_NaN();
    return out;
}

void add_decision_json(const Bytes &bytes, Description *description) {
    const Json document = document_from_bytes(bytes, "decision.json");
    checked_seal(document, bytes, "decision.json");
    const Node root(document, "decision.json");
    root.keys({"schema", "bundle", "regions", "k", "run_agreement", "fit", "seal"}, {"frame_px"});
    const std::string &model = root.at("bundle").string();
    if (!is_digest(model)) root.at("bundle").wrong("the seal of bundle.json");
    if (model != description->seal)
        fail(GRD_ERR_BUNDLE_HASH, "decision.json was fitted for the bundle with seal " + model.substr(0, 12) +
                                      ".., this one has " + description->seal.substr(0, 12) +
                                      "..: its thresholds belong to another model; run `grd-edge recalibrate`");
    read_regions(root, description);
    root.at("fit").object();
    const double agreement = root.at("run_agreement").number();
    if (!(agreement > 0.5 && agreement <= 1.0)) root.at("run_agreement").wrong("a number above 0.5, at most 1");
    description->info.run_agreement = agreement;
    description->info.k = root.at("k").integer32(1);
    description->info.region_count = static_cast<int32_t>(description->regions.size());
    if (description->regions.size() == 1) description->info.threshold = description->regions[0].threshold;
    description->info.has_decision = 1;
}

} // namespace grd
