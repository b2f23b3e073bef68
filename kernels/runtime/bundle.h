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
    std::string version, capabilities, compatibility; /* of the fingerprint, "" when it does not say */
};

/* A rectangle in px of the frame, before the working scale. */
struct Area {
    int32_t y, x, h, w;
};

struct Region {
    std::string name;
    float threshold = 0;
    std::vector<Area> areas; /* empty: the whole frame */
};

/* A mask of interest, nonzero = of interest; pixels are somebody else's. */
struct Mask {
    const uint8_t *pixels = nullptr; /* NULL: the whole frame */
    int64_t h = 0, w = 0;
    int64_t stride_y = 0, stride_x = 0; /* bytes */
};

/* bundle.json and decision.json, checked. */
struct Description {
    std::string seal;
    std::map<std::string, ListedFile> files;
    grd_bundle_info info = {};
    std::map<std::string, std::string> chosen; /* precision by target */
    std::vector<Engine> engines;
    std::string roi_file;        /* "": the whole frame is of interest */
    std::vector<Region> regions; /* none without decision */
    int32_t frame_h = 0, frame_w = 0; /* size of the frame that the areas were drawn on; 0 when there are none */
};

/* bundle_json.cpp. Throw Failure. */
Description description_from_bundle_json(const Bytes &bytes);
void add_decision_json(const Bytes &bytes, Description *description);
/* bundle.cpp. Throws Failure; name is for its message. */
Mask mask_from_pgm(const Bytes &bytes, const std::string &name);

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
    /* Whether path names another folder by now: a writer exchanged the bundle while it was read. */
    bool moved(const char *path) const;

private:
    int fd_;
};

} // namespace grd

struct grd_bundle {
    std::string message;
    std::string path;
    bool verified = false;
    grd::Description description;
    std::map<std::string, grd::Bytes> kept_bytes; /* engines and mask by path; several engines may share a file */
    grd::Mask roi;
};

#endif
