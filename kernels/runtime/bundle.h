/* bundle.h - what the parts of the bundle reader share, and what the inspector takes from it. Not public.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Rules and numbers are those of docs/bundle.md. */
#ifndef GRD_BUNDLE_H
#define GRD_BUNDLE_H

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "grd_edge.h"

namespace grd {

/* A file as it was hashed. */
struct Bytes {
    std::unique_ptr<uint8_t[]> data;
    size_t count = 0;
};

struct ListedFile {
    std::string sha256;
    int64_t byte_count = 0;
};

struct Engine {
    std::string target, precision, backend, file, format;
};

/* bundle.json and decision.json, checked. */
struct Description {
    std::string seal;
    std::map<std::string, ListedFile> files;
    grd_bundle_info info = {};
    std::map<std::string, std::string> chosen; /* precision by target */
    std::vector<Engine> engines;
};

/* bundle_json.cpp. Throw Failure. */
Description description_from_bundle_json(const Bytes &bytes);
void add_decision_json(const Bytes &bytes, Description *description);

/* bundle_files.cpp. An open folder; paths below it are followed component by component and never through links. */
class Folder {
public:
    explicit Folder(const char *path);
    ~Folder();
    Folder(const Folder &) = delete;
    Folder &operator=(const Folder &) = delete;

    /* A JSON file at the top, at most 1 MiB. False when there is none. */
    bool read_document(const char *name, Bytes *out) const;
    /* A listed file, checked for size and hash. keep = false: only checked, nothing is returned. */
    Bytes read_listed(const std::string &path, const ListedFile &listed, bool keep) const;
    /* Nothing else is in the folder but the two documents and what leads to listed files. */
    void check_listing(const std::map<std::string, ListedFile> &files) const;

private:
    int fd_;
};

} // namespace grd

struct grd_bundle {
    std::string message;
    std::string path;
    bool verified = false;
    grd::Description description;
    std::map<std::string, grd::Bytes> engine_bytes; /* by path; several engines may share a file */
};

#endif
