/* Memory and copies. Device memory has addresses that the host cannot use, and its bytes elsewhere. */
#define _GNU_SOURCE
#include "stub.h"

#include <sys/mman.h>

struct block {
    enum place place;
    char *address; /* as CUDA tells it */
    char *bytes;   /* where they are: for DEVICE somewhere else */
    size_t size;
    struct block *next;
};
static struct block *blocks;

static size_t pages(size_t size) { return (size / 4096 + 1) * 4096; }

static char *map(size_t size, int protection)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *address = mmap(NULL, pages(size), protection, flags, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

static struct block *find(const void *address)
{
    for (struct block *block = blocks; block; block = block->next)
        if ((const char *)address >= block->address
            && (const char *)address < block->address + (block->size ? block->size : 1))
            return block;
    return NULL;
}

enum place stub_place(const char *bytes)
{
    for (struct block *block = blocks; block; block = block->next)
        if (bytes >= block->bytes && bytes < block->bytes + block->size)
            return block->place;
    return PAGEABLE;
}

static cudaError_t allocate(void **address, size_t size, enum place place)
{
    long long free = SETTING(total_bytes) - SETTING(other_bytes) - COUNTER(allocated_bytes);
    *address = NULL;
    if (place == DEVICE && (long long)size > free)
        return stub_fail(cudaErrorMemoryAllocation);
    if (!size)
        return cudaSuccess;
    char *bytes = map(size, PROT_READ | PROT_WRITE);
    char *told = place == DEVICE ? map(size, PROT_NONE) : bytes;
    if (!bytes || !told)
        return stub_fail(cudaErrorMemoryAllocation);
    struct block *block = malloc(sizeof *block);
    *block = (struct block){place, told, bytes, size, blocks};
    blocks = block;
    *address = told;
    if (place == DEVICE) {
        COUNTER(allocations)++;
        COUNTER(allocated_bytes) += size;
        if (COUNTER(peak_bytes) < COUNTER(allocated_bytes))
            COUNTER(peak_bytes) = COUNTER(allocated_bytes);
    } else
        COUNTER(pinned_allocations)++;
    return cudaSuccess;
}

static cudaError_t release(void *address, enum place place)
{
    if (!address)
        return cudaSuccess;
    stub_flush_all();
    for (struct block **link = &blocks; *link; link = &(*link)->next) {
        struct block *block = *link;
        if (block->address != address || block->place != place)
            continue;
        *link = block->next;
        if (place == DEVICE) {
            COUNTER(frees)++;
            COUNTER(allocated_bytes) -= block->size;
            munmap(block->address, pages(block->size));
        } else
            COUNTER(pinned_frees)++;
        munmap(block->bytes, pages(block->size));
        free(block);
        return cudaSuccess;
    }
    return stub_fault(cudaErrorInvalidValue, "free of what was not allocated");
}

cudaError_t cudaMalloc(void **address, size_t size)
{
    ENTER;
    cudaError_t error = stub_unsafe("cudaMalloc");
    if (error)
        return error;
    error = allocate(address, size, DEVICE);
    stub_log("cudaMalloc %zu -> %p", size, *address);
    return error;
}

cudaError_t cudaFree(void *address)
{
    ENTER;
    stub_log("cudaFree %p", address);
    cudaError_t error = stub_unsafe("cudaFree");
    return error ? error : release(address, DEVICE);
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags)
{
    ENTER;
    cudaError_t error = stub_unsafe("cudaHostAlloc");
    if (error)
        return error;
    error = allocate(address, size, PINNED);
    stub_log("cudaHostAlloc %zu flags=%u -> %p", size, flags, *address);
    return error;
}

cudaError_t cudaMallocHost(void **address, size_t size) { return cudaHostAlloc(address, size, 0); }

cudaError_t cudaFreeHost(void *address)
{
    ENTER;
    stub_log("cudaFreeHost %p", address);
    cudaError_t error = stub_unsafe("cudaFreeHost");
    return error ? error : release(address, PINNED);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties)
{
    ENTER;
    *pool = (cudaMemPool_t)malloc(1);
    return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool)
{
    ENTER;
    free(pool);
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value)
{
    ENTER;
    memset(value, 0, which < cudaMemPoolAttrReleaseThreshold ? sizeof(int) : sizeof(uint64_t));
    return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void **address, size_t size, cudaMemPool_t pool,
                                    cudaStream_t stream)
{
    ENTER;
    cudaError_t error = allocate(address, size, DEVICE);
    stub_log("cudaMallocFromPoolAsync %zu stream=%p -> %p", size, (void *)stream, *address);
    return error;
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream)
{
    ENTER;
    stub_log("cudaFreeAsync %p stream=%p", address, (void *)stream);
    return release(address, DEVICE);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    ENTER;
    *total = SETTING(total_bytes);
    *free = SETTING(total_bytes) - SETTING(other_bytes) - COUNTER(allocated_bytes);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address)
{
    ENTER;
    struct block *block = find(address);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = !block                     ? cudaMemoryTypeUnregistered
                       : block->place == DEVICE ? cudaMemoryTypeDevice
                                                : cudaMemoryTypeHost;
    attributes->devicePointer = block ? (void *)address : NULL;
    attributes->hostPointer = block && block->place == PINNED ? (void *)address : NULL;
    return cudaSuccess;
}

/* Where the bytes of `size` bytes at an address are; NULL if they leave their allocation. */
static char *resolve(const void *address, size_t size, enum place *place)
{
    struct block *block = find(address);
    *place = block ? block->place : PAGEABLE;
    if (!block)
        return (char *)address;
    size_t offset = (const char *)address - block->address;
    return size <= block->size - offset ? block->bytes + offset : NULL;
}

void stub_do(const struct work *work)
{
    for (size_t plane = 0; plane < work->depth; plane++)
        for (size_t row = 0; row < work->rows; row++) {
            char *target = work->target + plane * work->target_slice + row * work->target_pitch;
            const char *source =
                work->source + plane * work->source_slice + row * work->source_pitch;
            if (work->what == FILL)
                memset(target, work->value, work->width);
            else
                memmove(target, source, work->width);
        }
}

static size_t span(size_t width, size_t rows, size_t depth, size_t pitch, size_t slice)
{
    return (depth - 1) * slice + (rows - 1) * pitch + width;
}

/* Any copy or memset. The addresses of `work` are those that CUDA told. */
static cudaError_t perform(const char *call, struct work work, enum cudaMemcpyKind kind,
                           cudaStream_t stream, int waits)
{
    static const char *const names[] = {"HtoH", "HtoD", "DtoH", "DtoD"};
    cudaError_t error = waits ? stub_unsafe(call) : stub_check_stream(stream);
    if (error)
        return error;
    if (!work.width || !work.rows || !work.depth)
        return cudaSuccess;
    enum place from = DEVICE, to;
    if (work.rows > 1 && (work.target_pitch < work.width
                          || (work.what == COPY && work.source_pitch < work.width)))
        return stub_fault(cudaErrorInvalidPitchValue, "rows wider than their pitch");
    work.target = resolve(work.target,
                          span(work.width, work.rows, work.depth, work.target_pitch,
                               work.target_slice), &to);
    if (work.what == COPY)
        work.source = resolve(work.source,
                              span(work.width, work.rows, work.depth, work.source_pitch,
                                   work.source_slice), &from);
    if (!work.target || (work.what == COPY && !work.source))
        return stub_fault(cudaErrorInvalidValue, "a copy that leaves its allocation");
    /* The GPU reads and writes page-locked memory, so it passes for memory of either side. */
    int reads_device = from == DEVICE || (from == PINNED && kind != cudaMemcpyDefault && kind & 2);
    int writes_device = to == DEVICE || (to == PINNED && kind != cudaMemcpyDefault && kind & 1);
    enum cudaMemcpyKind actual = (reads_device ? 2 : 0) + (writes_device ? 1 : 0);
    if (work.what == FILL && to == PAGEABLE)
        return stub_fault(cudaErrorInvalidValue, "a memset outside device memory");
    if (work.what == COPY && kind != cudaMemcpyDefault && kind != actual)
        return stub_fault(cudaErrorInvalidValue, "a copy in another direction than it names");
    size_t bytes = work.width * work.rows * work.depth;
    int recorded = !waits && stub_recorded(stream, &work);
    stub_log("%s%s kind=%d bytes=%zu %zux%zux%zu stream=%p %s%s", recorded ? "captured " : "", call,
             actual, bytes, work.width, work.rows, work.depth, (void *)stream,
             work.what == FILL ? "fill" : names[actual],
             from == PAGEABLE || to == PAGEABLE ? " pageable" : "");
    if (recorded)
        return cudaSuccess;
    if (work.what == FILL)
        COUNTER(memsets)++;
    else {
        stub_counters[(const int[]){COUNT_host_to_host, COUNT_host_to_device, COUNT_device_to_host,
                                    COUNT_device_to_device}[actual]]++;
        COUNTER(host_to_device_bytes) += actual == cudaMemcpyHostToDevice ? bytes : 0;
        COUNTER(device_to_host_bytes) += actual == cudaMemcpyDeviceToHost ? bytes : 0;
    }
    if (waits) {
        stub_flush_blocking();
        stub_do(&work);
    } else
        stub_queue(stream, &work);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind)
{
    ENTER;
    struct work work = {COPY, target, source, size, 1, 1, 0, 0, 0, 0, 0};
    return perform("cudaMemcpy", work, kind, NULL, 1);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    ENTER;
    struct work work = {COPY, target, source, size, 1, 1, 0, 0, 0, 0, 0};
    return perform("cudaMemcpyAsync", work, kind, stream, 0);
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source,
                              size_t source_pitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER;
    struct work work = {COPY, target, source, width, height, 1, target_pitch, source_pitch, 0, 0, 0};
    return perform("cudaMemcpy2DAsync", work, kind, stream, 0);
}

cudaError_t cudaMemcpy3DAsync(const struct cudaMemcpy3DParms *p, cudaStream_t stream)
{
    ENTER;
    if (p->srcArray || p->dstArray)
        return stub_fault(cudaErrorNotSupported, "the stubs have no arrays");
    size_t target_slice = p->dstPtr.pitch * p->dstPtr.ysize;
    size_t source_slice = p->srcPtr.pitch * p->srcPtr.ysize;
    struct work work = {
        COPY,
        (char *)p->dstPtr.ptr + p->dstPos.z * target_slice + p->dstPos.y * p->dstPtr.pitch
            + p->dstPos.x,
        (char *)p->srcPtr.ptr + p->srcPos.z * source_slice + p->srcPos.y * p->srcPtr.pitch
            + p->srcPos.x,
        p->extent.width, p->extent.height, p->extent.depth,
        p->dstPtr.pitch, p->srcPtr.pitch, target_slice, source_slice, 0};
    return perform("cudaMemcpy3DAsync", work, p->kind, stream, 0);
}

/* cudaMemcpy3DBatchAsync, whose structures change from release to release: sitecustomize.py reads
   them. One call counts as one copy. */
cudaError_t stub_copy_batch(size_t count, const struct work *boxes, cudaStream_t stream)
{
    ENTER;
    if (!count)
        return stub_fault(cudaErrorInvalidValue, "an empty batch of copies");
    long long before = COUNTER(device_to_device);
    for (size_t i = 0; i < count; i++) {
        cudaError_t error = perform("cudaMemcpy3DBatchAsync", boxes[i], cudaMemcpyDeviceToDevice,
                                    stream, 0);
        if (error)
            return error;
    }
    COUNTER(device_to_device) = before + 1;
    return cudaSuccess;
}

cudaError_t cudaMemset(void *target, int value, size_t size)
{
    ENTER;
    struct work work = {FILL, target, NULL, size, 1, 1, 0, 0, 0, 0, value};
    return perform("cudaMemset", work, cudaMemcpyDefault, NULL, 1);
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream)
{
    ENTER;
    struct work work = {FILL, target, NULL, size, 1, 1, 0, 0, 0, 0, value};
    return perform("cudaMemsetAsync", work, cudaMemcpyDefault, stream, 0);
}

/* A symbol of device code has no value here. */
cudaError_t cudaMemcpyFromSymbol(void *target, const void *symbol, size_t size, size_t offset,
                                 enum cudaMemcpyKind kind)
{
    ENTER;
    COUNTER(device_to_host)++;
    stub_log("cudaMemcpyFromSymbol bytes=%zu", size);
    memset(target, 0, size);
    return cudaSuccess;
}
