/* The GPU that the stubs pose as: an H200's numbers, as far as ONNX Runtime asks for them. */
#include "stub.h"

#define MAJOR 9
#define MINOR 0
#define CUDA_VERSION 13000

static __thread int current;

cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER;
    *count = SETTING(devices);
    return *count ? cudaSuccess : stub_fail(cudaErrorNoDevice);
}

static cudaError_t check(int device)
{
    if (!SETTING(devices))
        return stub_fail(cudaErrorNoDevice);
    return device >= 0 && device < SETTING(devices) ? cudaSuccess
                                                    : stub_fail(cudaErrorInvalidDevice);
}

cudaError_t cudaSetDevice(int device)
{
    ENTER;
    cudaError_t error = check(device);
    if (!error)
        current = device;
    return error;
}

cudaError_t cudaGetDevice(int *device)
{
    ENTER;
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    ENTER;
    cudaError_t error = check(device);
    if (error)
        return error;
    memset(p, 0, sizeof *p);
    strcpy(p->name, "CUDA stub (sm_90)");
    p->major = MAJOR;
    p->minor = MINOR;
    p->totalGlobalMem = SETTING(total_bytes);
    p->warpSize = 32;
    p->multiProcessorCount = 132;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = 227 << 10;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->regsPerBlock = 65536;
    p->l2CacheSize = 50 << 20;
    p->concurrentKernels = p->unifiedAddressing = p->memoryPoolsSupported = 1;
    const int threads[] = {1024, 1024, 64}, grid[] = {2147483647, 65535, 65535};
    memcpy(p->maxThreadsDim, threads, sizeof threads);
    memcpy(p->maxGridSize, grid, sizeof grid);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    static const struct {
        enum cudaDeviceAttr attribute;
        int value;
    } known[] = {
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMultiProcessorCount, 132},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
        {cudaDevAttrComputeCapabilityMajor, MAJOR},
        {cudaDevAttrComputeCapabilityMinor, MINOR},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
        {cudaDevAttrL2CacheSize, 50 << 20},
        {cudaDevAttrCooperativeLaunch, 1},
        {cudaDevAttrMemoryPoolsSupported, 1},
        {cudaDevAttrClusterLaunch, 1},
    };
    ENTER;
    cudaError_t error = check(device);
    if (error)
        return error;
    *value = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == attribute) {
            *value = known[i].value;
            return cudaSuccess;
        }
    stub_log("cudaDeviceGetAttribute %d is unknown to the stubs: 0", attribute);
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDA_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDA_VERSION;
    return cudaSuccess;
}

static int do_nothing(void) { return 0; }

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *status)
{
    stub_log("cudaGetDriverEntryPoint %s", name);
    *function = (void *)do_nothing;
    if (status)
        *status = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
