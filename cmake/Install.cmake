# SPDX-License-Identifier: Apache-2.0
#
# Installation. Everything is found relative to where it lies, so that a prefix can be moved as a whole.
#
# As a C library:  <prefix>/{include, lib, lib/cmake/grd_edge, lib/pkgconfig, share/doc/grd_edge}
# In a wheel:      grd_edge/_lib/{libraries, include}, and in grd_edge/_lib/package what `grd-edge package` adds to them,
#                  laid out as there: {lib/cmake/grd_edge, lib/pkgconfig, examples, licenses}
#
# Takes `libraries`: the targets to install.
include(CMakePackageConfigHelpers)

if(SKBUILD)
  set(library_folder grd_edge/_lib)
  set(header_folder grd_edge/_lib/include)
  set(added grd_edge/_lib/package/)
  set(examples_folder ${added}examples)
  set(licenses_folder ${added}licenses)
  set(layout_libraries lib) # of a package
  set(layout_headers include)
else()
  set(library_folder "${CMAKE_INSTALL_LIBDIR}")
  set(header_folder "${CMAKE_INSTALL_INCLUDEDIR}")
  set(added "")
  set(examples_folder "${CMAKE_INSTALL_DATADIR}/doc/grd_edge/examples")
  set(licenses_folder "${CMAKE_INSTALL_DATADIR}/doc/grd_edge/licenses")
  set(layout_libraries "${CMAKE_INSTALL_LIBDIR}")
  set(layout_headers "${CMAKE_INSTALL_INCLUDEDIR}")
  # Within 0.x a new minor version may change the interface. In a wheel and a package the library has its plain name and
  # no links, which not every way of copying keeps.
  set_target_properties(grd_edge PROPERTIES VERSION ${PROJECT_VERSION}
                                            SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endif()

install(TARGETS ${libraries} LIBRARY DESTINATION "${library_folder}")
install(FILES kernels/include/grd_edge.h DESTINATION "${header_folder}")

set(config_folder "${layout_libraries}/cmake/grd_edge")
configure_package_config_file(cmake/grd_edge-config.cmake.in grd_edge-config.cmake
  INSTALL_DESTINATION "${config_folder}" PATH_VARS layout_libraries layout_headers
  NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(grd_edge-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/grd_edge-config.cmake" "${PROJECT_BINARY_DIR}/grd_edge-config-version.cmake"
        DESTINATION "${added}${config_folder}")

set(pkgconfig_folder "${layout_libraries}/pkgconfig")
get_filename_component(pkgconfig_full "${pkgconfig_folder}" ABSOLUTE BASE_DIR "${CMAKE_INSTALL_PREFIX}")
get_filename_component(headers_full "${layout_headers}" ABSOLUTE BASE_DIR "${CMAKE_INSTALL_PREFIX}")
file(RELATIVE_PATH headers_from_pkgconfig "${pkgconfig_full}" "${headers_full}")
configure_file(cmake/grd_edge.pc.in grd_edge.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/grd_edge.pc" DESTINATION "${added}${pkgconfig_folder}")

install(DIRECTORY kernels/examples/ DESTINATION "${examples_folder}" PATTERN CMakeLists.txt EXCLUDE)
install(FILES kernels/examples/project/CMakeLists.txt DESTINATION "${examples_folder}/project")
install(FILES LICENSE DESTINATION "${licenses_folder}" RENAME grd_edge.txt)
install(FILES kernels/licenses/nlohmann-json.txt DESTINATION "${licenses_folder}")
