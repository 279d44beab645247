/* libcuda.so.1: the driver's calls that the project makes itself, and those of the provider. */
#include "stub.h"

#include <cuda.h>

CUresult cuInit(unsigned flags) { return SETTING(devices) ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }

CUresult cuDriverGetVersion(int *version)
{
    return (CUresult)cudaDriverGetVersion(version);
}

CUresult cuDeviceGetCount(int *count)
{
    *count = SETTING(devices);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number)
{
    *device = number;
    return number >= 0 && number < SETTING(devices) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult properties(struct cudaDeviceProp *properties, CUdevice device)
{
    return cudaGetDeviceProperties(properties, device) ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{
    struct cudaDeviceProp found;
    CUresult result = properties(&found, device);
    if (!result)
        snprintf(name, size, "%s", found.name);
    return result;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) /* cuda.h calls it …_v2 */
{
    struct cudaDeviceProp found;
    CUresult result = properties(&found, device);
    if (!result)
        *bytes = found.totalGlobalMem;
    return result;
}

/* The driver's attributes have the runtime's numbers. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    return cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device)
               ? CUDA_ERROR_INVALID_DEVICE
               : CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *free, size_t *total) { return (CUresult)cudaMemGetInfo(free, total); }

static CUresult tell(CUresult error, const char **text, const char *name)
{
    *text = error == CUDA_SUCCESS           ? "CUDA_SUCCESS"
            : error == CUDA_ERROR_NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
                                            : name;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    return tell(error, text, "CUDA_ERROR_UNKNOWN");
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    return tell(error, text, "an error that the stubs do not name");
}
