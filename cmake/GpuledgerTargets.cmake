# What every target of this project shares: warnings, sanitizers, and how a test is declared.

add_library(gpuledger_flags INTERFACE)
target_compile_options(gpuledger_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror=return-type>)
if(GPULEDGER_SANITIZE)
  target_compile_options(gpuledger_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${GPULEDGER_SANITIZE}>)
  target_link_options(gpuledger_flags INTERFACE -fsanitize=${GPULEDGER_SANITIZE})
  if(GPULEDGER_SANITIZE MATCHES "undefined")
    target_compile_options(gpuledger_flags INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()
if(GPULEDGER_FUZZ)
  target_compile_options(gpuledger_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
endif()
# Part of every target, also of those that an installed package exports without it.
link_libraries($<BUILD_INTERFACE:gpuledger_flags>)

# fmt. Only where it is not version 9 is it header-only: what its library consists of differs from version to version. Files
# that see LibTorch take it header-only, because LibTorch brings the headers of another version.
add_library(gpuledger_fmt INTERFACE)
if(fmt_VERSION VERSION_GREATER_EQUAL 9 AND fmt_VERSION VERSION_LESS 10)
  add_library(gpuledger_fmt_code STATIC ${CMAKE_CURRENT_LIST_DIR}/fmt_implementation.cc)
  set_target_properties(gpuledger_fmt_code PROPERTIES POSITION_INDEPENDENT_CODE ON)
  get_target_property(fmt_headers fmt::fmt-header-only INTERFACE_INCLUDE_DIRECTORIES)
  target_include_directories(gpuledger_fmt_code SYSTEM PUBLIC ${fmt_headers})
  target_link_libraries(gpuledger_fmt INTERFACE gpuledger_fmt_code)
else()
  target_link_libraries(gpuledger_fmt INTERFACE fmt::fmt-header-only)
endif()

# Precompiled headers, for the presets whose compile time is most of their run. The release preset compiles without, so that
# no file can lack an include. gpuledger_precompiled(TARGET): what libraries and programs share, compiled once for each.
set(GPULEDGER_SHARED_HEADERS <algorithm> <atomic> <functional> <map> <memory> <optional> <span> <string> <string_view> <thread>
    <unordered_map> <utility> <variant> <vector> <fmt/format.h> <absl/container/flat_hash_map.h> <absl/status/statusor.h>)
function(gpuledger_precompiled target)
  if(NOT GPULEDGER_PCH)
    return()
  endif()
  get_target_property(type ${target} TYPE)
  set(pch gpuledger_library_headers)
  if(type STREQUAL "EXECUTABLE")
    set(pch gpuledger_test_headers)
  endif()
  if(NOT TARGET ${pch})
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/${pch}.cc CONTENT "int main() { return 0; }\n")
    if(type STREQUAL "EXECUTABLE")
      add_executable(${pch} EXCLUDE_FROM_ALL ${CMAKE_BINARY_DIR}/${pch}.cc)
      target_link_libraries(${pch} PRIVATE GTest::gtest GTest::gmock)
      set(more <gtest/gtest.h> <gmock/gmock.h>)
    else()
      add_library(${pch} OBJECT EXCLUDE_FROM_ALL ${CMAKE_BINARY_DIR}/${pch}.cc)
    endif()
    target_link_libraries(${pch} PRIVATE gpuledger_fmt absl::flat_hash_map absl::statusor)
    target_precompile_headers(${pch} PRIVATE ${GPULEDGER_SHARED_HEADERS} ${more})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${pch})
endfunction()

# gpuledger_test(NAME SOURCES a.cc ... [INTERNALS] [LIBRARIES ...] [LABELS cpu|gpu|stress ...] [PROPERTIES ...])
# One GoogleTest program; each of its tests is a ctest test. A test that skips itself is reported skipped. With INTERNALS it
# sees private headers, and links the library's objects in place of the shared library, which hides what they declare.
function(gpuledger_test name)
  cmake_parse_arguments(arg "INTERNALS" "" "SOURCES;LIBRARIES;LABELS;PROPERTIES" ${ARGN})
  if(NOT arg_LABELS)
    set(arg_LABELS cpu)
  endif()
  add_executable(${name} ${arg_SOURCES})
  if(arg_INTERNALS)
    set(library gpuledger_internals)
  else()
    set(library gpuledger::gpuledger)
  endif()
  set(format gpuledger_fmt)
  if("torch_wheel" IN_LIST arg_LIBRARIES)
    set(format fmt::fmt-header-only)
  endif()
  target_link_libraries(${name} PRIVATE ${library} ${format} GTest::gtest GTest::gmock GTest::gtest_main
                        ${arg_LIBRARIES})
  gpuledger_precompiled(${name})
  include(GoogleTest)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 600 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]" ${arg_PROPERTIES})
endfunction()
