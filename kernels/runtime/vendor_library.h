/* vendor_library.h - finding and opening the vendor's library of a backend.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef GRD_VENDOR_LIBRARY_H
#define GRD_VENDOR_LIBRARY_H

#include <string>

namespace grd {

struct VendorLibrary {
    const char *product;  /* "OpenVINO" */
    const char *folder;   /* where its libraries usually are */
    const char *names[2]; /* file names, the preferred first, ".<digits>" may follow; the second may be NULL */
};

/* Handle of the library: from vendor_dir, else GRD_VENDOR_DIR, else the backend's own folder, else where the loader
 * looks. It is never unloaded: its threads and exit handlers would not survive that. Throws Failure. */
void *open_vendor_library(const VendorLibrary &wanted, const char *vendor_dir);

/* What a vendor's library says, for a message: on one line, of limited length. */
std::string one_line(const char *said);

} // namespace grd
#endif
