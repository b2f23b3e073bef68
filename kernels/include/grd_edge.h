/* grd_edge.h - the C API of grd-edge: frames in, scores and decisions out.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * C99, no dependency but <stddef.h> and <stdint.h>; usable from C, C++, ctypes and Rust.
 *
 * How to read this header
 *   1. simplest: grd_bundle_open -> grd_inspector_open -> grd_inspector_inspect.
 *   2. a line: grd_bundle_open -> grd_stream_open -> grd_stream_submit and grd_stream_poll; frames overlap.
 *   3. kernels alone: grd_score_patches and grd_cut_frame need no bundle and no engine.
 *   4. own engine: fill a grd_backend, see the last section.
 *
 * Rules that hold everywhere
 *   - Every function that can fail returns a grd_status; GRD_OK is 0. Outputs are untouched when the
 *     status is an argument error (10..19); only the handle of an open function is always given.
 *   - Structures that may grow begin with struct_size: set it to sizeof the structure. Members that a
 *     library newer than your header knows, but your header does not, take their defaults.
 *   - The library never prints, never exits and lets no exception cross this border.
 *   - Memory passed in stays the caller's; memory handed out (strings) lives as long as its handle.
 *   - A handle may be used by one thread at a time, a stream by any number; different handles are independent.
 *   - Decisions: positive = defective. A NaN score is never good.
 */
#ifndef GRD_EDGE_H
#define GRD_EDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GRD_API __attribute__((visibility("default")))
#else
#define GRD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- version */

#define GRD_VERSION_MAJOR 0
#define GRD_VERSION_MINOR 1
#define GRD_VERSION_PATCH 0

/* Version of the library that runs: major * 10000 + minor * 100 + patch. Compare with the macros above. */
GRD_API int32_t grd_version(void);
/* The same as text, "0.1.0". Static. */
GRD_API const char *grd_version_string(void);

/* ----------------------------------------------------------------- status */

/* Values are pinned: they never change meaning. Grouped by tens. */
typedef int32_t grd_status;
enum {
    GRD_OK = 0,
    /* 10..19 the arguments of this call */
    GRD_ERR_ARGUMENT = 10,     /* NULL where a pointer is required, or a value out of range */
    GRD_ERR_STRUCT_SIZE = 11,  /* struct_size is 0 or smaller than the first release of the structure */
    GRD_ERR_DTYPE = 12,        /* dtype not taken by this call */
    GRD_ERR_SHAPE = 13,        /* extents not taken, or views that do not match */
    GRD_ERR_STRIDE = 14,       /* strides not taken by this call */
    GRD_ERR_SPACE = 15,        /* memory space not taken by this call */
    GRD_ERR_VARIANT = 16,      /* a forced kernel variant is unknown or not supported by this CPU */
    GRD_ERR_BUFFER = 17,       /* an output buffer is too small */
    /* 20..29 the bundle on disk */
    GRD_ERR_BUNDLE_MISSING = 20,   /* no bundle at that path */
    GRD_ERR_BUNDLE_MALFORMED = 21, /* bundle.json, decision.json or the mask is not what the schema asks for */
    GRD_ERR_BUNDLE_SCHEMA = 22,    /* written by a newer grd-edge */
    GRD_ERR_BUNDLE_HASH = 23,      /* a file or seal does not match its sha256 */
    GRD_ERR_BUNDLE_CONTENT = 24,   /* a file is missing, unlisted, linked, or badly named */
    GRD_ERR_BUNDLE_ENGINE = 25,    /* the bundle holds no engine for that target and precision */
    /* 30..39 the backend that runs the engine */
    GRD_ERR_BACKEND_MISSING = 30,  /* libgrd_backend_<name>.so was not found */
    GRD_ERR_BACKEND_ABI = 31,      /* the backend speaks another version of the table */
    GRD_ERR_BACKEND_LIBRARY = 32,  /* the vendor's libraries were not found or do not load */
    GRD_ERR_ENGINE_OPEN = 33,      /* the engine was refused by the vendor's library */
    GRD_ERR_ENGINE_RUN = 34,       /* inference failed */
    GRD_ERR_ENGINE_MISMATCH = 35,  /* the engine was built for another device or version */
    GRD_ERR_DEVICE = 36,           /* no such device, or its driver refused */
    /* 40..49 the frame */
    GRD_ERR_FRAME_SIZE = 40,       /* smaller than a patch after scaling, of another size than the mask or the areas,
                                      or without a patch to inspect */
    GRD_ERR_FRAME_CHANNELS = 41,   /* channels the bundle cannot take */
    /* 50..59 the system */
    GRD_ERR_MEMORY = 50,
    GRD_ERR_IO = 51,
    GRD_ERR_THREAD = 52, /* the system gave no thread */
    /* 60..69 the stream; no defect, and nothing is lost */
    GRD_ERR_STREAM_FULL = 60,    /* no room for the frame, as results were not taken; take some, then submit it again */
    GRD_ERR_STREAM_EMPTY = 61,   /* no result is ready */
    GRD_ERR_STREAM_TIMEOUT = 62, /* not within timeout_ms */
    /* 90 a defect of ours; please report */
    GRD_ERR_INTERNAL = 90
};

/* Name of a status, such as "GRD_ERR_BUNDLE_HASH"; "GRD_ERR_UNKNOWN" for any other value. Static. */
GRD_API const char *grd_status_name(grd_status status);

/* ------------------------------------------------------------------ views */

enum { /* grd_view.dtype */
    GRD_UINT8 = 1,
    GRD_UINT16 = 2,
    GRD_FLOAT16 = 3, /* IEEE binary16 */
    GRD_FLOAT32 = 4,
    GRD_INT8 = 5     /* times a scale that the call states */
};
enum { /* grd_view.space */
    GRD_SPACE_HOST = 0,
    GRD_SPACE_CUDA = 1  /* memory of the current CUDA device */
};

/* A four-dimensional array that somebody else owns. Axis order is always N, C, H, W; the memory layout is
 * what the strides say. All strides 0 means dense row-major NCHW. Input views are never written. */
typedef struct grd_view {
    void *data;
    int32_t dtype;
    int32_t space;
    int64_t extent[4];
    int64_t stride_bytes[4];
} grd_view;

/* View of an interleaved frame (H rows of W pixels of C channels, as cameras and OpenCV give it; RGB order
 * when C is 3). row_stride_bytes 0 means rows without padding. */
GRD_API grd_view grd_view_of_frame(const void *data, int32_t dtype, int64_t h, int64_t w, int64_t c,
                                   int64_t row_stride_bytes);

/* ---------------------------------------------------------------- kernels */

/* Scoring and cutting are compiled in variants, one per instruction set. Calls run the one that they force by name,
 * else the one that the environment variable GRD_FORCE_VARIANT names, else the fastest that this CPU supports. A
 * forced one that is unknown or not supported is GRD_ERR_VARIANT; nothing runs in its place. */

/* The variants of this build, fastest last: "scalar", "avx2", ... NULL past the end. */
GRD_API const char *grd_variant_name(int32_t index);
/* 1 when this CPU runs the variant, 0 when not or unknown. */
GRD_API int32_t grd_variant_supported(const char *name);
/* Name of the variant that runs with `forced` (NULL: none forced by the call); NULL when it cannot run. */
GRD_API const char *grd_variant_active(const char *forced);

/* Threads for calls that take a pool. They sleep between calls. A pool serves one call at a time. */
typedef struct grd_pool grd_pool;

/* threads: 1 to 1024, the caller's own included. Errors: 10, 50, 52. */
GRD_API grd_status grd_pool_open(int32_t threads, grd_pool **out);
GRD_API void grd_pool_close(grd_pool *pool);

/* ---------------------------------------------------------------- scoring */

enum { /* grd_score_params.window */
    GRD_WINDOW_GAUSSIAN = 0, /* 11x11, sigma 1.5, valid positions */
    GRD_WINDOW_BOX = 1       /* 11x11 mean, zero padded */
};

typedef struct grd_score_params {
    uint32_t struct_size;
    int32_t window;          /* GRD_WINDOW_* */
    int32_t local_window_px; /* w of phi_local, >= 1; 0 = 21; cut to the map's size */
    float heatmap_scale;     /* of a UINT8 heatmap: |X - X^| times this, rounded to even, at most 255; 0 = 255 */
    const char *variant;     /* see grd_variant_active */
    const grd_view *roi;     /* N,1,H,W or 1,1,H,W UINT8, any strides, nonzero = of interest; NULL = everything */
    grd_pool *pool;          /* shares the patches out; NULL = the caller's thread alone */
    void *workspace;         /* grd_score_workspace_bytes bytes, any alignment; NULL = allocated per call */
    size_t workspace_bytes;
} grd_score_params;

typedef struct grd_score_outputs {
    uint32_t struct_size;
    uint32_t reserved;
    float *phi;              /* N values in [0, 2]; NULL = not wanted */
    float *phi_local;        /* N values in [0, 2]; NULL = not wanted */
    float *residual_min;     /* N values, least |X - X^| (channel mean); NULL = not wanted */
    float *residual_max;     /* N values, largest |X - X^| (channel mean); NULL = not wanted */
    const grd_view *heatmap; /* N,1,H,W FLOAT32, FLOAT16 or UINT8, mean over channels of |X - X^|; NULL = not wanted */
    const char **variant;    /* name of the variant that ran; NULL = not wanted */
} grd_score_outputs;

/* Scores N patches against their reconstructions in one pass (formula: docs/method.md, section 5).
 *   x      UINT8 (value / 255, rounded once to FLOAT32), FLOAT16 or FLOAT32; H and W >= 11 (Gaussian), C >= 1, any
 *          strides, values nominally [0, 1].
 *   x_hat  FLOAT16 or FLOAT32, the same extents, any strides.
 * A patch that holds NaN or Inf scores NaN. Within 1e-6 of float64 on the values as stored. Independent of batch,
 * alignment and threads.
 * With a mask of interest, pixels outside count for nothing: in x and x_hat they are taken as 0 whatever they hold,
 * phi is the mean over the windows that hold a pixel of interest, the residual range is that of the pixels of
 * interest, and the heatmap is 0 elsewhere. A patch without one scores NaN: nothing was seen of it.
 * Box windows and phi_local windows above 256 px run in `scalar` whatever is forced; outputs->variant says so.
 * params NULL = defaults. Errors: 10..17, GRD_ERR_MEMORY. */
GRD_API grd_status grd_score_patches(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                                     const grd_score_outputs *outputs);

/* Workspace that makes grd_score_patches free of allocation for patches of this size and params->pool; 0 when the
 * size is not supported. Enough for every variant. */
GRD_API size_t grd_score_workspace_bytes(const grd_score_params *params, int64_t c, int64_t h, int64_t w);

/* ---------------------------------------------------------------- cutting */

enum { /* grd_cut_params.padding */
    GRD_PADDING_ERROR = 0,  /* a frame smaller than a patch is GRD_ERR_FRAME_SIZE */
    GRD_PADDING_REFLECT = 1 /* it is grown on its lower and right side by reflection (edge not repeated) */
};

typedef struct grd_cut_params {
    uint32_t struct_size;
    int32_t scale_px;  /* shorter side after area resampling; 0 = native resolution */
    int32_t patch_h;
    int32_t patch_w;
    int32_t stride_y;  /* 1 to patch_h, and 1 to patch_w: every pixel is in some patch */
    int32_t stride_x;
    int32_t channels;  /* of the patches: 1 or 3. 3 -> 1 is 0.299 R + 0.587 G + 0.114 B; 1 -> 3 is refused */
    int32_t padding;   /* GRD_PADDING_* */
} grd_cut_params;

typedef struct grd_grid {
    uint32_t struct_size;
    int32_t scaled_h; /* frame after the working scale, before padding */
    int32_t scaled_w;
    int32_t rows;     /* patches in y and x; the last row and column shift inward */
    int32_t cols;
    int32_t count;    /* rows * cols */
} grd_grid;

/* Where the patches of a frame_h x frame_w frame lie. Sides are 1 to 65536 px, before and after scaling.
 * Errors: 10..13, GRD_ERR_FRAME_SIZE. */
GRD_API grd_status grd_cut_grid(const grd_cut_params *params, int64_t frame_h, int64_t frame_w, grd_grid *out);

/* Top left corner of patch `index` (row by row) in the scaled frame. */
GRD_API grd_status grd_cut_position(const grd_cut_params *params, const grd_grid *grid, int32_t index,
                                    int32_t *y_px, int32_t *x_px);

typedef struct grd_cut_options {
    uint32_t struct_size;
    float input_scale;   /* the engine's, of INT8 patches, > 0; not read for other types */
    const char *variant; /* see grd_variant_active */
    const char **ran;    /* receives the name of the variant that ran; NULL = not wanted */
    void *workspace;     /* grd_cut_workspace_bytes bytes, any alignment; NULL = allocated per call */
    size_t workspace_bytes;
} grd_cut_options;

/* Cuts a frame into patches, with grey conversion and scaling in one pass.
 *   frame    1,C,H,W; UINT8 or UINT16; C 1 or 3; any strides.
 *   patches  N,channels,patch_h,patch_w as the engine takes them: FLOAT32, FLOAT16 or INT8, dense in the order N,C,H,W
 *            or N,H,W,C, whichever the strides say (all 0: N,C,H,W); aligned to an element.
 * FLOAT32 values are in [0, 1]: within 1e-6 of float64; without scaling each is rounded once. FLOAT16 ones are these
 * rounded again, INT8 ones these / input_scale rounded to an integer, at most 127; both to nearest, ties to even.
 * All variants give the same bits. options NULL = defaults. Errors: 10..17, 40, 41, GRD_ERR_MEMORY. */
GRD_API grd_status grd_cut_frame(const grd_cut_params *params, const grd_view *frame, const grd_view *patches,
                                 const grd_cut_options *options);

/* The inverse: a map of the scaled frame from maps or scores of its patches; the mean where patches overlap.
 *   patches  N,1,patch_h,patch_w; FLOAT32, FLOAT16 or UINT8 (values as they are); any strides, so that scores are
 *            patches with strides sizeof(float), 0, 0, 0.
 *   map      1,1,scaled_h,scaled_w FLOAT32, any strides that keep pixels apart. What padding added is dropped.
 * Sums are FLOAT64, so that the mean of equal values is that value. params->channels counts for nothing. Errors:
 * 10..17, 40, GRD_ERR_MEMORY. */
GRD_API grd_status grd_stitch_frame(const grd_cut_params *params, int64_t frame_h, int64_t frame_w,
                                    const grd_view *patches, const grd_view *map, const grd_cut_options *options);

/* Workspace that makes both calls free of allocation for frames of this size; 0 when the size is not supported. */
GRD_API size_t grd_cut_workspace_bytes(const grd_cut_params *params, int64_t frame_h, int64_t frame_w);

/* ------------------------------------------------------------ CUDA kernels */

/* Scoring and cutting on NVIDIA devices of compute capability 7.5 and more, in a library of its own: link
 * libgrd_edge_cuda.so. Every view is of GRD_SPACE_CUDA, and so are the arrays of the outputs and the workspace; the
 * structures themselves are the host's. Calls only enqueue their work on `stream` (a cudaStream_t; NULL is the default
 * stream): they neither wait nor allocate, and can be captured in a CUDA graph. Addresses and strides are multiples of
 * the element's size. The variant is "cuda"; params->variant and options->variant are that or NULL, GRD_FORCE_VARIANT
 * counts for nothing, and pools are not used.
 * What the driver refuses is GRD_ERR_DEVICE, and grd_cuda_message says why; a failure of work that is under way shows
 * up in later calls, as CUDA has it. */

/* As grd_score_patches, box windows included; phi_local windows, cut to the map, of at most 256 px, else
 * GRD_ERR_ARGUMENT; h * w below 2^31. params->workspace is required (GRD_ERR_BUFFER), aligned to 256 bytes, and begins
 * with 65536 bytes that must be 0 before its first use (cudaMemset once): every call leaves them 0. One workspace serves
 * calls of any size, one at a time. Within 1e-6 of float64 on the values as stored. Results are the same bit for bit
 * whatever the batch, the device and the choice of outputs. Errors: 10..17, GRD_ERR_DEVICE. */
GRD_API grd_status grd_cuda_score_patches(const grd_score_params *params, const grd_view *x, const grd_view *x_hat,
                                          const grd_score_outputs *outputs, void *stream);
/* Workspace for n patches of this size, whatever is wanted of them; 0 when they are not taken. */
GRD_API size_t grd_cuda_score_workspace_bytes(const grd_score_params *params, int64_t n, int64_t c, int64_t h,
                                              int64_t w);

/* As grd_cut_frame, with the same bits, in one launch. indices: NULL, or on the device an array of the extent N of
 * `patches`: the patches of the grid to cut, in order, none of them outside the grid. No workspace is needed.
 * Errors: 10..16, 40, 41, GRD_ERR_DEVICE. */
GRD_API grd_status grd_cuda_cut_frame(const grd_cut_params *params, const grd_view *frame, const int32_t *indices,
                                      const grd_view *patches, const grd_cut_options *options, void *stream);

/* One sentence about the last GRD_ERR_DEVICE of the calling thread, "" when there was none. Valid until the thread's
 * next call. */
GRD_API const char *grd_cuda_message(void);

/* ----------------------------------------------------------------- bundle */

typedef struct grd_bundle grd_bundle;

enum { /* grd_bundle_info.head: what the bundle's graph yields of a patch */
    GRD_HEAD_RECONSTRUCTION = 0, /* X^, scored as grd_score_patches does */
    GRD_HEAD_SCORE_MAP = 1       /* scores of its own: 1,1 + patch_h,patch_w; the score in row 0, below it the map */
};

typedef struct grd_bundle_info {
    uint32_t struct_size;
    int32_t schema;
    grd_cut_params cut;
    int32_t window;          /* GRD_WINDOW_* */
    int32_t local_window_px;
    int32_t decides_local;   /* 0: phi decides, 1: phi_local decides */
    int32_t has_decision;    /* 0: no decision.json, nothing can be decided */
    int32_t k;               /* patches that make a product defective; 0 without decision */
    float threshold;         /* of the one region: patch defective unless score < threshold; NaN without decision, and
                                with several regions: then ask grd_bundle_region_threshold */
    int32_t engine_count;
    int32_t region_count;    /* 1 to 64; 0 without decision */
    int32_t roi_h;           /* size of the mask of interest, which frames must have; 0: the whole frame counts */
    int32_t roi_w;
    double run_agreement;    /* share of the acquisitions of a run that must agree, in (0.5, 1]; 0 without decision */
    int32_t head;            /* GRD_HEAD_*; not in the first release */
    int32_t reserved;
} grd_bundle_info;

/* Opens and verifies a bundle folder: schema, names, sizes and sha256 of every file. The bytes that were
 * hashed are the bytes that are used later. *out receives a handle also on failure (NULL only when memory
 * ran out): read grd_bundle_message, then close it. Errors: 10, 20..24, 50, 51. */
GRD_API grd_status grd_bundle_open(const char *path, grd_bundle **out);
GRD_API void grd_bundle_close(grd_bundle *bundle);
/* One sentence about the last failure of this handle, "" when there was none. */
GRD_API const char *grd_bundle_message(const grd_bundle *bundle);
GRD_API grd_status grd_bundle_get_info(const grd_bundle *bundle, grd_bundle_info *out);
/* Target and precision of engine `index`; NULL past the end. */
GRD_API const char *grd_bundle_engine_target(const grd_bundle *bundle, int32_t index);
GRD_API const char *grd_bundle_engine_precision(const grd_bundle *bundle, int32_t index);
/* Name (UTF-8) and threshold of region `index`, in the order of decision.json; NULL and NaN past the end. */
GRD_API const char *grd_bundle_region_name(const grd_bundle *bundle, int32_t index);
GRD_API float grd_bundle_region_threshold(const grd_bundle *bundle, int32_t index);

/* -------------------------------------------------------------- inspector */

typedef struct grd_inspector grd_inspector;

typedef struct grd_inspector_params {
    uint32_t struct_size;
    int32_t threads;         /* of the engine, and of scoring between its calls (there at most 8); 0 = all cores */
    int32_t batch_limit;     /* patches per engine call, 1..1024; 0 = 16 */
    int32_t undecided;       /* 1 = leave thresholds and regions out: every patch of interest is inspected, nothing is
                                decided; for fitting thresholds. 0 = decide */
    const char *target;      /* NULL = "cpu" */
    const char *precision;   /* NULL = the one the bundle chose for that target */
    const char *backend_dir; /* folder of libgrd_backend_<name>.so; NULL = the folder of this library */
    const char *vendor_dir;  /* folder of the vendor's libraries; NULL = GRD_VENDOR_DIR, else the backend's own
                                folder, else the loader's path */
    const char *variant;     /* of the kernels; see grd_variant_active */
} grd_inspector_params;

enum { /* decisions; anything but GRD_GOOD must be rejected */
    GRD_GOOD = 0,
    GRD_DEFECTIVE = 1,
    GRD_UNDECIDED = 2,   /* the bundle has no thresholds yet; or the frame has fewer patches than k, so that only the
                            other frames of its product can decide: add up defective_count over them, or let a stream */
    GRD_INCONSISTENT = 3, /* of a run: its acquisitions do not agree */
    GRD_NOT_INSPECTED = 4 /* of a stream: the frame was dropped or failed, or the product lacks such frames */
};

typedef struct grd_patch_result {
    int32_t y_px; /* top left corner in the scaled frame */
    int32_t x_px;
    int32_t decision; /* GRD_GOOD, GRD_DEFECTIVE or GRD_UNDECIDED */
    int32_t region;   /* index of the region whose threshold applies; 0 without decision */
    float phi;
    float phi_local;
} grd_patch_result;

typedef struct grd_result {
    uint32_t struct_size;
    int32_t decision;        /* of the product: defective when at least k patches are */
    int32_t patch_count;     /* inspected patches: those with a pixel of interest whose center lies in a region */
    int32_t defective_count;
    float score;             /* k-th largest deciding score (largest without decision, least of fewer than k); with
                                several regions the k-th largest margin, score - threshold of its region. NaN when any
                                patch scored NaN, which counts as one defective patch */
    float threshold;         /* what score is compared with: the one threshold, 0 with several regions; NaN without
                                decision */
    double cut_ms;           /* wall time of each stage; where the backend does the whole frame, all of it is infer_ms,
                                and what is stitched on the host score_ms */
    double infer_ms;
    double score_ms;
    double total_ms;
    /* set by the caller before the call: */
    grd_patch_result *patches; /* NULL = not wanted */
    int64_t patch_capacity;    /* elements; fewer than patch_count is GRD_ERR_BUFFER, the grid's count always fits */
    const grd_view *heatmap;   /* 1,1,scaled_h,scaled_w FLOAT32, overlaps averaged; 0 where nothing was inspected or
                                  nothing is of interest; NULL = not wanted */
    const grd_view *x_hat;     /* N,C,patch_h,patch_w FLOAT32 dense, reconstructions of the inspected patches in the
                                  first patch_count of N; NULL = not wanted. GRD_ERR_ARGUMENT of GRD_HEAD_SCORE_MAP */
    const grd_view *roi;       /* 1,1,H,W UINT8 of the frame's own size, any strides, nonzero = of interest: in place of
                                  the bundle's mask; NULL = the bundle's mask, else the whole frame */
} grd_result;

/* Loads an engine of the bundle. The bundle must stay open as long as the inspector. *out receives a handle
 * also on failure, as in grd_bundle_open. params NULL = defaults. Errors: 10, 11, 13, 16, 25, 30..36, 50, 52. */
GRD_API grd_status grd_inspector_open(const grd_bundle *bundle, const grd_inspector_params *params,
                                      grd_inspector **out);
GRD_API void grd_inspector_close(grd_inspector *inspector);
GRD_API const char *grd_inspector_message(const grd_inspector *inspector);
/* Name and version of the engine's vendor library, and what else its backend tells, for logs. Valid until the next
 * call. */
GRD_API const char *grd_inspector_engine_version(const grd_inspector *inspector);
/* Patches of a frame of this size, inspected or not: how large the caller's arrays must be at most. */
GRD_API grd_status grd_inspector_grid(const grd_inspector *inspector, int64_t frame_h, int64_t frame_w,
                                      grd_grid *out);
/* Frame in, decision out. frame as in grd_cut_frame. Only patches with a pixel of interest and in a region are cut,
 * inferred and scored; pixels outside the mask are 0 in patch and reconstruction when they are scored, and phi is the
 * mean over the windows that hold a pixel of interest (docs/method.md, sections 6 and 7).
 * Of GRD_HEAD_SCORE_MAP, phi is the graph's score, phi_local the largest value of its map (NaN if any is) and the heatmap
 * that map. Where a mask leaves out part of an inspected patch, the map is 0 outside and both scores of every patch of
 * the frame are its largest value inside.
 * Memory is allocated only when a frame needs more of it than every frame before. The first frame of a new patch count
 * may take longer: engines are prepared for the batch sizes they meet. Inspect one frame before the line starts.
 * Errors: 10..17, 33, 34, 40, 41, 50. */
GRD_API grd_status grd_inspector_inspect(grd_inspector *inspector, const grd_view *frame, grd_result *result);

/* ----------------------------------------------------------------- stream */

/* Frames in one after another, decisions out, with bounded memory and exact accounting:
 *   grd_stream_open -> { grd_stream_submit, grd_stream_poll or _wait } ... -> grd_stream_flush -> poll the rest -> close.
 * Every submitted frame comes back exactly once, as scored, late, dropped or failed. Its pixels and output buffers are
 * the stream's from grd_stream_submit until then; it makes no copy of them, though a backend on a device has to. Frames
 * come back in the order of their submission, but for dropped ones, which come back at once. After grd_stream_open,
 * memory is allocated only for failures' texts, and for frames larger than those announced.
 * Any thread may call any function of an open stream, several at a time; only grd_stream_close is the last. */
typedef struct grd_stream grd_stream;

enum { /* grd_stream_params.overload: when queue_depth frames wait already, grd_stream_submit */
    GRD_OVERLOAD_BLOCK = 0,       /* waits for a place: for ever where nobody takes results and capacity is reached */
    GRD_OVERLOAD_DROP_OLDEST = 1, /* drops the frame that has waited longest */
    GRD_OVERLOAD_DROP_NEWEST = 2  /* drops the frame it was called with */
};

enum { /* grd_stream_result.outcome */
    GRD_SCORED = 1,  /* decided in time */
    GRD_LATE = 2,    /* decided, after its deadline */
    GRD_DROPPED = 3, /* not inspected: the stream was overloaded, or closed */
    GRD_FAILED = 4   /* not inspected: status and message say why */
};

typedef struct grd_stream_result {
    uint32_t struct_size;
    int32_t outcome;         /* GRD_SCORED ... GRD_FAILED */
    grd_status status;       /* GRD_OK, or why the frame failed */
    int32_t generation;      /* of the bundle that inspected it: 0, and 1 more after each grd_stream_swap */
    int64_t id;              /* these as submitted */
    int64_t product;
    int64_t run;
    void *user;
    int32_t decision;        /* of this frame; GRD_NOT_INSPECTED when it was dropped or failed */
    int32_t patch_count;     /* these as in grd_result; 0 and NaN when not inspected */
    int32_t defective_count;
    int32_t product_complete; /* 1: this frame was the last of its product to come back */
    float score;
    float threshold;
    int32_t product_decision; /* when complete: defective when at least k patches of all its frames are; GRD_UNDECIDED when
                                 nothing can be decided; GRD_NOT_INSPECTED when frames are missing that could tell */
    int32_t product_frames;   /* of the product so far, this one included: how many came back, ... */
    int32_t product_missing;  /* ... and how many of these were dropped or failed */
    int32_t product_defective_count; /* defective patches of them */
    int32_t run_complete;     /* 1: this product was the last of its run */
    int32_t run_decision;     /* when complete: GRD_GOOD, GRD_DEFECTIVE, GRD_UNDECIDED or GRD_INCONSISTENT */
    int32_t run_products;     /* products of the run so far */
    int32_t run_defective;    /* and how many of these are defective */
    double queue_ms;          /* from submission until work on it began */
    double cut_ms;            /* wall times of the stages; of all frames of its batch, where it shared one */
    double infer_ms;
    double score_ms;
    double total_ms;          /* from submission until the result was there */
    int32_t batch_frames;     /* frames that shared its engine calls, itself included */
    int32_t reserved;
    char message[256];        /* of a failed frame, else "" */
} grd_stream_result;

/* Called by a thread of the stream for each result, one at a time; the result is valid during the call. */
typedef void (*grd_stream_result_fn)(void *context, const grd_stream_result *result);

typedef struct grd_stream_params {
    uint32_t struct_size;
    int32_t queue_depth;   /* frames that may wait for the engine, 1..65536; 0 = 8 */
    int32_t capacity;      /* frames held in all: waiting, in work, and results not yet taken; more than queue_depth, at
                              most 1048576; 0 = 4 * queue_depth + 64 */
    int32_t overload;      /* GRD_OVERLOAD_* */
    int32_t engines;       /* instances of the engine that run side by side, 1..16; 0 = 1. 2 on a GPU: one frame is copied
                              while the other is computed. Each holds the weights anew */
    int32_t threads;       /* of the stream, engines..64; 0 = engines, and one more to cut and score meanwhile where these
                              leave it the CPU (any target but "cpu"), or to go on during on_result */
    int32_t batch_frames;  /* frames that may share engine calls, 1..1024: as many as wait, fit batch_limit patches, pay
                              off, and keep their deadlines; 0 = as many as that gives */
    int32_t heatmaps;      /* 1: frames may bring a heatmap to fill; 0: none does */
    int64_t frame_h;       /* size and channels of all frames; others fail. 0, 0, 0: any, and memory grows with them */
    int64_t frame_w;
    int32_t frame_c;
    int32_t open_products; /* products, and runs, that may be incomplete at a time, 1..65536; 0 = 256. One more closes the
                              oldest, which then has missing frames */
    double deadline_ms;    /* from submission until the result, of frames that bring none; 0 = none */
    double batch_wait_ms;  /* how long a frame may wait for others to share a batch, as its deadline allows; 0 = it shares
                              with those that wait already */
    double spin_us;        /* how long idle threads of the stream, and grd_stream_wait, watch before they sleep: less
                              latency for CPU time; 0 = not at all */
    const int32_t *cpus;   /* CPUs that the threads of the stream and its engines run on; NULL = any */
    int64_t cpu_count;
    const grd_inspector_params *inspector; /* of the engines; NULL = defaults */
    grd_stream_result_fn on_result; /* NULL = results are polled. It may call grd_stream_submit, which then refuses where it
                                       would wait, and grd_stream_get_stats, nothing else of this stream */
    void *context;         /* for on_result */
} grd_stream_params;

typedef struct grd_stream_frame {
    uint32_t struct_size;
    int32_t product_frames; /* frames that make up its product; 0 = 1, the frame alone */
    int64_t id;             /* these come back with the result */
    int64_t product;        /* which product it belongs to; frames of several products may alternate */
    int64_t run;            /* which run the product belongs to */
    void *user;
    int32_t run_products;   /* products that make up the run, each seen in an acquisition; 0 = no run */
    int32_t reserved;
    double deadline_ms;     /* from submission until the result; 0 = that of the stream; below 0 = none */
    grd_view view;          /* the pixels, as for grd_inspector_inspect */
    grd_patch_result *patches; /* filled when scored; NULL = not wanted */
    int64_t patch_capacity;
    grd_view heatmap;       /* as grd_result.heatmap; data NULL = not wanted */
} grd_stream_frame;

/* Times in ms of one stage over the life of a stream; percentiles are at most 3.2 % above the exact ones, worst is exact. */
typedef struct grd_latency {
    int64_t count;
    double p50_ms;
    double p95_ms;
    double p99_ms;
    double p999_ms;
    double worst_ms;
} grd_latency;

typedef struct grd_stream_stats {
    uint32_t struct_size;
    int32_t generation;
    int64_t submitted; /* = scored + late + dropped + failed + in_flight, always */
    int64_t scored;
    int64_t late;      /* missed deadlines */
    int64_t dropped;
    int64_t failed;
    int64_t in_flight; /* waiting or in work */
    int64_t waiting;   /* of these, waiting */
    int64_t ready;     /* results not yet taken */
    int64_t refused;   /* calls of grd_stream_submit that gave GRD_ERR_STREAM_FULL; such frames are not submitted */
    int64_t good;      /* decisions of scored and late frames */
    int64_t defective;
    int64_t undecided;
    int64_t products_closed; /* incomplete ones that had to make room, runs included */
    int64_t batches;   /* times that frames went to the engine together, or that one did alone */
    int64_t patches;   /* inspected */
    double oldest_ms;  /* age of the oldest frame in flight: large when an engine hangs */
    double uptime_s;
    grd_latency queue; /* as the members of grd_stream_result */
    grd_latency cut;
    grd_latency infer;
    grd_latency score;
    grd_latency total;
} grd_stream_stats;

/* Opens the engines, and prepares them for every batch size that frame_h x frame_w frames can make, which takes seconds;
 * so no frame meets it later. The bundle must stay open as long as the stream, or until grd_stream_swap replaced it. *out
 * receives a handle also on failure, as in grd_bundle_open. params NULL = defaults. Errors: those of grd_inspector_open,
 * 40, 41, GRD_ERR_THREAD. */
GRD_API grd_status grd_stream_open(const grd_bundle *bundle, const grd_stream_params *params, grd_stream **out);
/* Drops what waits, ends the work under way, frees everything. Frames whose results were not taken come back to the caller
 * by this call. Not from on_result. NULL is fine. */
GRD_API void grd_stream_close(grd_stream *stream);
/* One sentence about the last call of this thread on any stream that failed with a status outside 60..69, which say all;
 * "" when none did. Valid until the thread's next call. */
GRD_API const char *grd_stream_message(const grd_stream *stream);
/* Gives a frame to the stream. GRD_OK: it comes back once, whatever happens to it; a frame that does not fit comes back as
 * failed. Any other status: it was not taken. Errors: 10, 11, GRD_ERR_STREAM_FULL. */
GRD_API grd_status grd_stream_submit(grd_stream *stream, const grd_stream_frame *frame);
/* Takes the next result, if there is one; not with on_result. Errors: 10, 11, GRD_ERR_STREAM_EMPTY. */
GRD_API grd_status grd_stream_poll(grd_stream *stream, grd_stream_result *result);
/* The same, waiting for it at most timeout_ms; below 0: as long as it takes. Errors: 10, 11, GRD_ERR_STREAM_TIMEOUT. */
GRD_API grd_status grd_stream_wait(grd_stream *stream, grd_stream_result *result, double timeout_ms);
/* Waits until nothing is in flight, at most timeout_ms; below 0: as long as it takes. Results stay to be taken; with
 * on_result they were all delivered. Errors: 10, GRD_ERR_STREAM_TIMEOUT. */
GRD_API grd_status grd_stream_flush(grd_stream *stream, double timeout_ms);
/* Puts another bundle in charge without a gap: its engines are opened and prepared while the stream goes on, frames
 * submitted from then on are inspected by it, and those submitted before by the bundle, and the thresholds, that were in
 * charge then. Returns when the last of these is done: the old bundle may then be closed. A failure leaves the old one in
 * charge. One swap at a time. Errors: those of grd_stream_open. */
GRD_API grd_status grd_stream_swap(grd_stream *stream, const grd_bundle *bundle);
/* A consistent picture of the counts; the percentiles are those of about now. Errors: 10, 11. */
GRD_API grd_status grd_stream_get_stats(const grd_stream *stream, grd_stream_stats *out);
/* As grd_inspector_engine_version and grd_inspector_grid, of the bundle in charge. The text is valid until the thread's
 * next call. Errors: 10, 11, 13, 40. */
GRD_API const char *grd_stream_engine_version(const grd_stream *stream);
GRD_API grd_status grd_stream_grid(const grd_stream *stream, int64_t frame_h, int64_t frame_w, grd_grid *out);

/* ---------------------------------------------------- backends (advanced) */

/* A backend runs engines of one kind. It is a shared library libgrd_backend_<name>.so that exports
 * grd_backend_table; bundles name the backend of each engine. */
#define GRD_BACKEND_ABI 1

typedef struct grd_engine_desc {
    uint32_t struct_size;
    int32_t threads;        /* 0 = all cores */
    int32_t batch_limit;    /* largest N of engine_infer */
    int32_t channels;
    int32_t patch_h;
    int32_t patch_w;
    const void *bytes;      /* the engine file, verified; valid during engine_open only */
    size_t byte_count;
    const char *format;     /* "onnx", ... as the bundle says */
    const char *precision;  /* "fp32", "bf16", "fp16", "int8" */
    const char *vendor_dir; /* may be NULL */
    /* What the bundle says of the engine, each NULL when it does not (docs/bundle.md): */
    const char *library_version;      /* of the vendor's library that built it, "1.7.1.116" */
    const char *compute_capabilities; /* of the devices that it was built for, "8.6 8.9" */
    const char *compatibility;        /* with other versions and devices: "none", "version", "ampere+", ... */
    const char *target;               /* "rtx-ada" */
    /* Extents of what the engine yields of a patch, GRD_HEAD_*; 0 = those of the patch: */
    int32_t output_c;
    int32_t output_h;
    int32_t output_w;
    int32_t reserved;
} grd_engine_desc;

/* Whole frames on the engine's device, for backends that cut, infer and score there; of GRD_HEAD_RECONSTRUCTION only. */
typedef struct grd_frame_desc {
    uint32_t struct_size;
    int32_t window;          /* GRD_WINDOW_* */
    int32_t local_window_px;
    grd_cut_params cut;
} grd_frame_desc;

/* One frame and what is wanted of it. Arrays are the host's; the caller has checked all of it. */
typedef struct grd_frame_work {
    uint32_t struct_size;
    int32_t count;                 /* patches to inspect, >= 1 */
    const grd_view *frame;         /* as in grd_cut_frame */
    const grd_grid *grid;          /* of grd_cut_grid */
    const int32_t *indices;        /* count numbers of patches in the grid, rising */
    const uint8_t *const *masks;   /* count masks of interest, dense patch_h x patch_w, each NULL where the whole patch is
                                      of interest; NULL when each is */
    float *phi;                    /* count values */
    float *phi_local;              /* count values */
    float *heatmaps;               /* count,1,patch_h,patch_w; NULL = not wanted */
    float *x_hat;                  /* count,channels,patch_h,patch_w; NULL = not wanted */
} grd_frame_work;

typedef struct grd_backend {
    uint32_t struct_size;
    uint32_t abi;            /* GRD_BACKEND_ABI */
    const char *name;
    /* Detail text of a failure goes to message (NUL-terminated, at most message_bytes). */
    grd_status (*engine_open)(const grd_engine_desc *desc, void **engine, char *message, size_t message_bytes);
    /* x and x_hat: dense FLOAT32 N,C,patch_h,patch_w and N,output_c,output_h,output_w with 1 <= N <= batch_limit; blocks
     * until done. */
    grd_status (*engine_infer)(void *engine, const grd_view *x, const grd_view *x_hat, char *message,
                               size_t message_bytes);
    const char *(*engine_version)(void *engine);
    void (*engine_close)(void *engine);
    /* Members from here on are optional: NULL, or not covered by struct_size. All three or none. */
    /* Prepares for frames. *frames NULL with GRD_OK: not these frames, the library cuts and scores on the host. */
    grd_status (*frame_open)(void *engine, const grd_frame_desc *desc, void **frames, char *message,
                             size_t message_bytes);
    /* Cuts, infers and scores as grd_cut_frame and grd_score_patches do; blocks until done. */
    grd_status (*frame_inspect)(void *frames, const grd_frame_work *work, char *message, size_t message_bytes);
    void (*frame_close)(void *frames); /* before engine_close */
} grd_backend;

typedef const grd_backend *(*grd_backend_table_fn)(void);
/* A backend library exports: const grd_backend *grd_backend_table(void); */

#ifdef __cplusplus
}
#endif
#endif /* GRD_EDGE_H */
