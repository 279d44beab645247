/* libcublas.so.13: a routine is one launch on its handle's stream, if its arguments are plausible. */
#include "stub.h"

struct handle {
    cudaStream_t stream;
    int math_mode;
};

static int run(const char *name, struct handle *handle)
{
    return handle ? stub_launch(name, handle->stream) ? 13 /* EXECUTION_FAILED */ : 0
                  : 1 /* NOT_INITIALIZED */;
}

int cublasCreate_v2(struct handle **handle)
{
    *handle = calloc(1, sizeof **handle);
    return stub_ignore("cublasCreate") ? 1 : 0;
}

int cublasDestroy_v2(struct handle *handle)
{
    free(handle);
    return 0;
}

int cublasSetStream_v2(struct handle *handle, cudaStream_t stream)
{
    handle->stream = stream;
    return 0;
}

int cublasSetMathMode(struct handle *handle, int mode)
{
    handle->math_mode = mode;
    return 0;
}

int cublasGetMathMode(struct handle *handle, int *mode)
{
    *mode = handle->math_mode;
    return 0;
}

const char *cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_OF_STUB" : "CUBLAS_STATUS_SUCCESS"; }
const char *cublasGetStatusString(int status) { return status ? "an error of the stubs" : "success"; }

/* The sizes m, n and k of a product are in the name that is logged. */
#define PRODUCT(routine)                                                                \
    int routine(struct handle *handle, int transa, int transb, int m, int n, int k)     \
    {                                                                                   \
        char name[96];                                                                  \
        snprintf(name, sizeof name, #routine " m=%d n=%d k=%d", m, n, k);               \
        return run(name, handle);                                                       \
    }
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)

#define ROUTINE(routine) int routine(struct handle *handle) { return run(#routine, handle); }
ROUTINE(cublasSgeam)
ROUTINE(cublasDgeam)
ROUTINE(cublasScopy_v2)
ROUTINE(cublasSscal_v2)
ROUTINE(cublasSgetrfBatched)
ROUTINE(cublasDgetrfBatched)
ROUTINE(cublasSgetriBatched)
ROUTINE(cublasDgetriBatched)
