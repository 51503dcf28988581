# find_package(fastce) of CMake: the target fastce::fastce, wherever the Python package lies.
get_filename_component(_fastce_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET fastce::fastce)
  add_library(fastce::fastce SHARED IMPORTED)
  set_target_properties(fastce::fastce PROPERTIES
    IMPORTED_LOCATION "${_fastce_prefix}/libfastce${CMAKE_SHARED_LIBRARY_SUFFIX}"
    INTERFACE_INCLUDE_DIRECTORIES "${_fastce_prefix}/include")
endif()
unset(_fastce_prefix)
