/* openvino_api.h - OpenVINO's C library, opened at run time.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Its soname names the release, and wheels keep it inside site-packages; linking would tie a build to one release
 * at one place. */
#ifndef GRD_OPENVINO_API_H
#define GRD_OPENVINO_API_H

#include <openvino/c/openvino.h>

#include <string>

namespace grd {

#define GRD_OPENVINO_FUNCTIONS(X)                                                                                      \
    X(ov_compiled_model_create_infer_request)                                                                          \
    X(ov_compiled_model_free)                                                                                          \
    X(ov_compiled_model_get_property)                                                                                  \
    X(ov_core_compile_model)                                                                                           \
    X(ov_core_create)                                                                                                  \
    X(ov_core_free)                                                                                                    \
    X(ov_core_read_model_from_memory_buffer)                                                                           \
    X(ov_free)                                                                                                         \
    X(ov_get_error_info)                                                                                               \
    X(ov_get_last_err_msg)                                                                                             \
    X(ov_get_openvino_version)                                                                                         \
    X(ov_infer_request_free)                                                                                           \
    X(ov_infer_request_infer)                                                                                          \
    X(ov_infer_request_set_input_tensor)                                                                               \
    X(ov_infer_request_set_output_tensor)                                                                              \
    X(ov_model_const_input)                                                                                            \
    X(ov_model_const_output)                                                                                           \
    X(ov_model_free)                                                                                                   \
    X(ov_model_inputs_size)                                                                                            \
    X(ov_model_outputs_size)                                                                                           \
    X(ov_model_reshape_single_input)                                                                                   \
    X(ov_output_const_port_free)                                                                                       \
    X(ov_partial_shape_free)                                                                                           \
    X(ov_partial_shape_to_string)                                                                                      \
    X(ov_port_get_element_type)                                                                                        \
    X(ov_port_get_partial_shape)                                                                                       \
    X(ov_tensor_create_from_host_ptr)                                                                                  \
    X(ov_tensor_free)                                                                                                  \
    X(ov_version_free)

class OpenVinoApi {
public:
    /* vendor_dir, else GRD_VENDOR_DIR, else the backend's own folder, else what the loader finds. Throws Failure. */
    explicit OpenVinoApi(const char *vendor_dir);

#define GRD_MEMBER(name) decltype(&::name) name = nullptr;
    GRD_OPENVINO_FUNCTIONS(GRD_MEMBER)
#undef GRD_MEMBER

    const std::string &version() const { return version_; }
    /* What OpenVINO says about its last failure, on one line. */
    std::string last_error(ov_status_e status) const;

private:
    std::string version_;
};

} // namespace grd
#endif
