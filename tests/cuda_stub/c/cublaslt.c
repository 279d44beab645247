/* libcublasLt.so.13: products whose stream is their last argument. */
#include "stub.h"

static int create(void **object)
{
    *object = calloc(1, 256);
    return *object ? 0 : 3 /* ALLOC_FAILED */;
}

static int destroy(void *object)
{
    free(object);
    return 0;
}

int cublasLtCreate(void **handle) { return create(handle); }
int cublasLtDestroy(void *handle) { return destroy(handle); }
int cublasLtMatmulDescCreate(void **description) { return create(description); }
int cublasLtMatmulDescDestroy(void *description) { return destroy(description); }
int cublasLtMatrixLayoutCreate(void **layout) { return create(layout); }
int cublasLtMatrixLayoutDestroy(void *layout) { return destroy(layout); }
int cublasLtMatmulPreferenceCreate(void **preference) { return create(preference); }
int cublasLtMatmulPreferenceDestroy(void *preference) { return destroy(preference); }
int cublasLtMatrixTransformDescCreate(void **description) { return create(description); }
int cublasLtMatrixTransformDescDestroy(void *description) { return destroy(description); }

/* A cublasLtMatmulHeuristicResult_t: the algorithm, its workspace, its status, waves, reserved. */
struct result {
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

/* One algorithm that needs no workspace. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *description, void *a, void *b, void *c,
                                   void *d, void *preference, int asked, struct result *results,
                                   int *count)
{
    memset(results, 0, sizeof *results);
    *count = 1;
    return 0;
}

int cublasLtMatmul(void *handle, void *description, const void *alpha, const void *a,
                   void *a_layout, const void *b, void *b_layout, const void *beta, const void *c,
                   void *c_layout, void *d, void *d_layout, const void *algorithm, void *workspace,
                   size_t workspace_size, cudaStream_t stream)
{
    return stub_launch("cublasLtMatmul", stream) ? 13 /* EXECUTION_FAILED */ : 0;
}

int cublasLtMatrixTransform(void *handle, void *description, const void *alpha, const void *a,
                            void *a_layout, const void *beta, const void *b, void *b_layout,
                            void *c, void *c_layout, cudaStream_t stream)
{
    return stub_launch("cublasLtMatrixTransform", stream) ? 13 : 0;
}
