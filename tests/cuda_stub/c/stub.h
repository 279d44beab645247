/* CUDA libraries without a GPU.
 *
 * These libraries have the names of NVIDIA's and pose as one GPU of compute capability 9.0. ONNX
 * Runtime's real CUDA provider loads them, opens graphs and runs them.
 *
 * What they show, because the program under test decides it: on which provider each node is placed;
 * shapes; which kernels and library routines are called, how often and on which stream; every
 * allocation, copy, synchronisation and captured graph; what is refused, and with which error;
 * whether all memory is given back.
 *
 * What they do not show: any number that a kernel computes (kernels do nothing, so outputs are what
 * was in the memory), speed, races of kernels, which kernel a real cuBLAS or cuDNN would choose or
 * refuse, and whether a kernel has code for a GPU.
 *
 * They are strict where CUDA is. Device memory cannot be read or written by the host: that ends the
 * process with SIGSEGV, as it would beside a GPU. A copy must lie within one allocation, in the
 * direction that it names; a free must name an allocation; streams, events and graphs must exist. A
 * call that breaks this fails with CUDA's own error and is counted in `faults`. A copy from or to
 * page-locked memory is done as late as CUDA allows: when the host waits for its stream. Until then,
 * what it is to fill is 0xFF, and what it reads must not change, or that is counted in `faults`.
 *
 * A program reads counters with `stub_counter(name)` and changes settings with `stub_set(name,
 * value)`; a setting called `total_bytes` starts as the environment's CUDA_STUB_TOTAL_BYTES. Where
 * CUDA_STUB_LOG names a file, a line a call is appended to it.
 */
#ifndef STUB_H
#define STUB_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#define COUNTERS(X)                                                                   \
    X(allocations) /* of device memory */                                             \
    X(frees)                                                                          \
    X(allocated_bytes) /* now */                                                      \
    X(peak_bytes)                                                                     \
    X(pinned_allocations) /* of page-locked host memory */                            \
    X(pinned_frees)                                                                   \
    X(host_to_device) /* copies; those of a captured graph are not counted again */   \
    X(device_to_host)                                                                 \
    X(device_to_device)                                                               \
    X(host_to_host)                                                                   \
    X(host_to_device_bytes)                                                           \
    X(device_to_host_bytes)                                                           \
    X(memsets)                                                                        \
    X(synchronizations) /* of a stream, an event or the device */                     \
    X(event_waits)                                                                    \
    X(launches) /* kernels, and routines of cuBLAS and cuDNN */                       \
    X(captures)                                                                       \
    X(captured_launches)                                                              \
    X(graph_launches)                                                                 \
    X(streams) /* that exist now */                                                   \
    X(events)                                                                         \
    X(graphs) /* that can be launched now */                                          \
    X(faults) /* calls that were wrong, such as a free of an unknown address */

#define SETTINGS(X)                                                                   \
    X(devices, 1)                                                                     \
    X(total_bytes, 140ll << 30)                                                       \
    X(other_bytes, 0) /* used by other processes: total - other - allocated is free */\
    X(fail_after, 0)  /* launches from now after which the GPU is broken; 0: never */ \
    X(fail_with, 700) /* the error of every call from then on */

enum counter {
#define X(name) COUNT_##name,
    COUNTERS(X)
#undef X
};
enum setting {
#define X(name, value) SET_##name,
    SETTINGS(X)
#undef X
};

extern long long stub_counters[];
extern long long stub_settings[];
#define COUNTER(name) stub_counters[COUNT_##name]
#define SETTING(name) stub_settings[SET_##name]

/* One lock for all of CUDA, held from here to the end of the calling function. */
void stub_lock(void);
void stub_unlock(int *unused);
#define LOCK int stub_guard __attribute__((cleanup(stub_unlock), unused)) = (stub_lock(), 0)

/* Begins a function of CUDA: a broken GPU fails all of them. */
#define ENTER LOCK; if (stub_broken) return stub_broken
extern cudaError_t stub_broken;

/* Ends one: remembers a failure for cudaGetLastError. */
cudaError_t stub_fail(cudaError_t error);
/* The same for a call that no correct program makes. */
cudaError_t stub_fault(cudaError_t error, const char *why);

void stub_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Work on a stream, by cuBLAS's and cuDNN's stubs as well. `name` is only logged. */
cudaError_t stub_launch(const char *name, cudaStream_t stream);

/* What any function without a row of its own does. */
int stub_ignore(const char *name);

/* Within libcudart: a copy of `depth` planes of `rows` rows of `width` bytes, or a memset. */
struct work {
    enum { COPY, FILL } what;
    char *target;
    const char *source;
    size_t width, rows, depth;
    size_t target_pitch, source_pitch, target_slice, source_slice;
    int value;
};
void stub_do(const struct work *work);

/* Does it now, or when the host waits for the stream, if it reads or writes page-locked memory. */
void stub_queue(cudaStream_t stream, const struct work *work);
/* Does what is left: of one stream; of all that the default stream waits for; of all. */
void stub_flush(cudaStream_t stream);
void stub_flush_blocking(void);
void stub_flush_all(void);

enum place { PAGEABLE, PINNED, DEVICE };
/* Of what is at an address of the host; for DEVICE that is not the address that CUDA told. */
enum place stub_place(const char *bytes);

/* Records work in the stream's capture, if it has one. */
int stub_recorded(cudaStream_t stream, const struct work *work);
/* Refuses what must not be called while a capture is under way. */
cudaError_t stub_unsafe(const char *call);
cudaError_t stub_check_stream(cudaStream_t stream);

#endif
