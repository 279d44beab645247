/* Kernels: registered by the provider's start-up code under their names, and launched. */
#include "stub.h"

static struct kernel {
    const void *function;
    const char *name;
} *kernels;
static size_t count, capacity; /* capacity: a power of two, at least twice the count */

static struct kernel *slot(const void *function)
{
    size_t i = ((uintptr_t)function * 0x9E3779B97F4A7C15ull >> 20) & (capacity - 1);
    while (kernels[i].function && kernels[i].function != function)
        i = (i + 1) & (capacity - 1);
    return &kernels[i];
}

static void add(const void *function, const char *name)
{
    if (count * 2 >= capacity) {
        struct kernel *old = kernels;
        size_t size = capacity;
        capacity = capacity ? capacity * 2 : 1 << 16;
        kernels = calloc(capacity, sizeof *kernels);
        for (size_t i = 0; i < size; i++)
            if (old[i].function)
                *slot(old[i].function) = old[i];
        free(old);
    }
    struct kernel *kernel = slot(function);
    count += !kernel->function;
    *kernel = (struct kernel){function, name};
}

static const char *name_of(const void *function)
{
    const char *name = capacity ? slot(function)->name : NULL;
    return name ? name : "(unregistered)";
}

void __cudaRegisterFunction(void **module, const char *function, char *device_function,
                            const char *name, int limit, void *a, void *b, void *c, void *d, int *e)
{
    LOCK;
    add(function, name);
}

void **__cudaRegisterFatBinary(void *binary)
{
    static void *module[1];
    return module;
}

void __cudaRegisterFatBinaryEnd(void **module) {}
void __cudaUnregisterFatBinary(void **module) {}
void __cudaRegisterVar(void **module, char *variable) {}

static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream)
{
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *(cudaStream_t *)stream = pushed.stream;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream)
{
    return stub_launch(name_of(function), stream);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream)
{
    return stub_launch(name_of(kernel), stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block,
                                        void **arguments, size_t shared, cudaStream_t stream)
{
    return stub_launch(name_of(function), stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function,
                                void **arguments)
{
    return stub_launch(name_of(function), config->stream);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code,
                                enum cudaJitOption *jit_options, void **jit_values,
                                unsigned jit_count, enum cudaLibraryOption *options, void **values,
                                unsigned count)
{
    *library = (cudaLibrary_t)code;
    return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name)
{
    LOCK;
    char *copy = strdup(name);
    *kernel = (cudaKernel_t)copy;
    add(copy, copy);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    ENTER;
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                   const void *function, int size,
                                                                   size_t shared, unsigned flags)
{
    *blocks = 2;
    return cudaSuccess;
}
