/* bundle_files.cpp - reading below a bundle's folder without following links or reopening paths.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>

#include "bundle.h"
#include "failure.h"
#include "sha256.h"

namespace grd {
namespace {

constexpr int64_t kDocumentBytes = 1 << 20;
/* ONNX files end at 2 GiB; more than this is a mistake or an attack, and is refused before memory is asked for. */
constexpr int64_t kFileBytes = int64_t{4} << 30;
constexpr size_t kChunkBytes = 1 << 20;

class Fd {
public:
    explicit Fd(int fd) : fd_(fd) {}
    ~Fd() {
        if (fd_ >= 0) ::close(fd_);
    }
    Fd(Fd &&other) noexcept : fd_(other.release()) {}
    Fd &operator=(Fd &&other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    int get() const { return fd_; }
    int release() {
        const int fd = fd_;
        fd_ = -1;
        return fd;
    }

private:
    int fd_;
};

[[noreturn]] void fail_open(const std::string &path, int error) {
    const bool content = error == ENOENT || error == ENOTDIR || error == ELOOP || error == EMLINK ||
                         error == ENAMETOOLONG || error == ENXIO;
    const char *why = error == ENOENT ? "is listed but missing; copy the bundle again"
                      : error == ELOOP || error == ENOTDIR
                          ? "is a link, or a part of its path is no folder; put the file itself there"
                          : nullptr;
    fail(content           ? GRD_ERR_BUNDLE_CONTENT
         : error == ENOMEM ? GRD_ERR_MEMORY
                           : GRD_ERR_IO,
         path + (why != nullptr
                     ? std::string(" ") + why
                     : std::string(" cannot be opened (") + std::strerror(error) + "); check its permissions"));
}

/* O_NONBLOCK: opening a pipe that somebody put there must not wait for a writer. */
constexpr int kFileFlags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
constexpr int kFolderFlags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_DIRECTORY;

struct stat regular_stat(int fd, const std::string &path) {
    struct stat found;
    if (::fstat(fd, &found) != 0)
        fail(GRD_ERR_IO, path + " cannot be examined (" + std::strerror(errno) + "); check the disk");
    if (!S_ISREG(found.st_mode)) fail(GRD_ERR_BUNDLE_CONTENT, path + " is not a regular file; rebuild the bundle");
    return found;
}

Fd open_below(int root, const std::string &path) {
    Fd folder(-1);
    size_t begin = 0;
    while (true) {
        const size_t end = path.find('/', begin);
        const std::string part = path.substr(begin, end == std::string::npos ? end : end - begin);
        const int in = folder.get() >= 0 ? folder.get() : root;
        Fd next(::openat(in, part.c_str(), end == std::string::npos ? kFileFlags : kFolderFlags));
        if (next.get() < 0) fail_open(path, errno);
        if (end == std::string::npos) return next;
        folder = std::move(next);
        begin = end + 1;
    }
}

/* Exactly `count` bytes; a file that grows or shrinks meanwhile is an error. */
void read_exactly(int fd, uint8_t *to, size_t count, const std::string &path) {
    while (count > 0) {
        const ssize_t got = ::read(fd, to, count);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(GRD_ERR_IO, path + " cannot be read (" + std::strerror(errno) + "); check the disk");
        if (got == 0) fail(GRD_ERR_BUNDLE_HASH, path + " became shorter while it was read; copy the bundle again");
        to += got;
        count -= static_cast<size_t>(got);
    }
}

Bytes allocated(size_t count) {
    Bytes bytes;
    bytes.data.reset(new uint8_t[count > 0 ? count : 1]);
    bytes.count = count;
    return bytes;
}

/* Folders are followed only where they lead to a listed file, so depth and work are bounded by the list. */
void check_entries(Fd folder, const std::string &prefix, const std::map<std::string, ListedFile> &files,
                   const std::set<std::string> &folders) {
    DIR *stream = ::fdopendir(folder.get());
    if (stream == nullptr) fail(GRD_ERR_IO, "folder " + prefix + " cannot be listed (" + std::strerror(errno) + ")");
    folder.release();
    struct Closer {
        void operator()(DIR *open) const { ::closedir(open); }
    };
    const std::unique_ptr<DIR, Closer> closer(stream);
    while (true) {
        errno = 0;
        const dirent *entry = ::readdir(stream);
        if (entry == nullptr && errno != 0)
            fail(GRD_ERR_IO, "folder " + prefix + " cannot be listed (" + std::strerror(errno) + "); check the disk");
        if (entry == nullptr) return;
        const std::string name = entry->d_name, path = prefix + name;
        if (name == "." || name == "..") continue;
        const bool document = path == "bundle.json" || path == "decision.json";
        if (document || files.count(path) > 0) continue; /* opened, and checked to be a regular file, elsewhere */
        if (folders.count(path) == 0)
            fail(GRD_ERR_BUNDLE_CONTENT,
                 quoted(path) + " is in the folder but bundle.json does not list it; remove it");
        Fd below(::openat(::dirfd(stream), name.c_str(), kFolderFlags));
        if (below.get() < 0) fail_open(path, errno);
        check_entries(std::move(below), path + "/", files, folders);
    }
}

} // namespace

Folder::Folder(const char *path) : fd_(::open(path, O_RDONLY | O_CLOEXEC | O_DIRECTORY)) {
    if (fd_ >= 0) return;
    if (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG || errno == ELOOP)
        fail(GRD_ERR_BUNDLE_MISSING, "no such folder; give the path of a name.grdb folder");
    fail(errno == ENOMEM ? GRD_ERR_MEMORY : GRD_ERR_IO,
         std::string("cannot be opened (") + std::strerror(errno) + "); check its permissions");
}

Folder::~Folder() { ::close(fd_); }

bool Folder::moved(const char *path) const {
    struct stat mine, there;
    if (::fstat(fd_, &mine) != 0 || ::stat(path, &there) != 0) return false;
    return mine.st_dev != there.st_dev || mine.st_ino != there.st_ino;
}

bool Folder::read_document(const char *name, Bytes *out) const {
    Fd fd(::openat(fd_, name, kFileFlags));
    if (fd.get() < 0 && errno == ENOENT) return false;
    if (fd.get() < 0) fail_open(name, errno);
    const struct stat found = regular_stat(fd.get(), name);
    if (found.st_size > kDocumentBytes)
        fail(GRD_ERR_BUNDLE_MALFORMED,
             text("%s has %lld bytes, expected at most %lld; rebuild the bundle", name,
                  static_cast<long long>(found.st_size), static_cast<long long>(kDocumentBytes)));
    *out = allocated(static_cast<size_t>(found.st_size));
    read_exactly(fd.get(), out->data.get(), out->count, name);
    return true;
}

Bytes Folder::read_listed(const std::string &path, const ListedFile &listed, bool keep) const {
    Fd fd = open_below(fd_, path);
    const struct stat found = regular_stat(fd.get(), path);
    if (found.st_size != listed.byte_count)
        fail(GRD_ERR_BUNDLE_HASH,
             text("%s has %lld bytes, expected %lld: the file was changed after the bundle was written; "
                  "copy the bundle again or rebuild it with `grd-edge build bundle`",
                  path.c_str(), static_cast<long long>(found.st_size), static_cast<long long>(listed.byte_count)));
    if (found.st_size > kFileBytes)
        fail(GRD_ERR_BUNDLE_CONTENT,
             text("%s has %lld bytes, more than the %lld that a bundle's file may have", path.c_str(),
                  static_cast<long long>(found.st_size), static_cast<long long>(kFileBytes)));
    size_t left = static_cast<size_t>(found.st_size);
    Bytes bytes = allocated(keep || left < kChunkBytes ? left : kChunkBytes);
    grd_sha256 hash;
    grd_sha256_begin(&hash);
    uint8_t *to = bytes.data.get();
    while (left > 0) {
        const size_t part = left < kChunkBytes ? left : kChunkBytes;
        read_exactly(fd.get(), to, part, path);
        grd_sha256_add(&hash, to, part);
        left -= part;
        if (keep) to += part;
    }
    char digits[65];
    grd_sha256_end(&hash, digits);
    if (listed.sha256 != digits)
        fail(GRD_ERR_BUNDLE_HASH,
             path + " has sha256 " + std::string(digits, 12) + ".., expected " + listed.sha256.substr(0, 12) +
                 "..: the file was changed after the bundle was written; copy the bundle again or rebuild it "
                 "with `grd-edge build bundle`");
    return keep ? std::move(bytes) : Bytes();
}

void Folder::check_listing(const std::map<std::string, ListedFile> &files) const {
    std::set<std::string> folders;
    for (const auto &file : files)
        for (size_t at = file.first.find('/'); at != std::string::npos; at = file.first.find('/', at + 1))
            folders.insert(file.first.substr(0, at));
    Fd again(::openat(fd_, ".", kFolderFlags)); /* a stream of its own: reading it must not move fd_ */
    if (again.get() < 0) fail(GRD_ERR_IO, std::string("cannot be listed (") + std::strerror(errno) + ")");
    check_entries(std::move(again), "", files, folders);
}

} // namespace grd
