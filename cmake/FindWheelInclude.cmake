# SPDX-License-Identifier: Apache-2.0
#
# grd_wheel_include(<out> <module> <subfolder>): the folder <subfolder> of an installed Python package, or "" when it is
# not there. The package is located, not imported: importing can take seconds and needs its own dependencies.
function(grd_wheel_include out module subfolder)
  find_package(Python QUIET COMPONENTS Interpreter)
  set(${out} "" PARENT_SCOPE)
  if(NOT Python_Interpreter_FOUND)
    return()
  endif()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('${module}'); print(list(s.submodule_search_locations)[0] if s else '')"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(folder AND IS_DIRECTORY "${folder}/${subfolder}")
    set(${out} "${folder}/${subfolder}" PARENT_SCOPE)
  endif()
endfunction()
