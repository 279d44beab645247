/* libcudnn.so.9, which ONNX Runtime loads when it first needs it. It can be left out. */
#include "stub.h"

struct handle {
    cudaStream_t stream;
};

int cudnnCreate(struct handle **handle)
{
    *handle = calloc(1, sizeof **handle);
    return 0;
}

int cudnnDestroy(struct handle *handle)
{
    free(handle);
    return 0;
}

int cudnnSetStream(struct handle *handle, cudaStream_t stream)
{
    handle->stream = stream;
    return 0;
}

int cudnnGetStream(struct handle *handle, cudaStream_t *stream)
{
    *stream = handle->stream;
    return 0;
}

size_t cudnnGetVersion(void) { return 91400; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return status ? "an error of the stubs" : "success"; }
void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "no error"); }

#define ROUTINE(routine)                                                             \
    int routine(struct handle *handle)                                               \
    {                                                                                \
        return stub_launch(#routine, handle->stream) ? 5000 /* EXECUTION_FAILED */ : 0; \
    }
ROUTINE(cudnnActivationForward)
ROUTINE(cudnnAddTensor)
ROUTINE(cudnnConvolutionForward)
ROUTINE(cudnnConvolutionBiasActivationForward)
ROUTINE(cudnnPoolingForward)
ROUTINE(cudnnReduceTensor)
ROUTINE(cudnnSoftmaxForward)
ROUTINE(cudnnBackendExecute)

#define DESCRIPTOR(kind)                                                             \
    int cudnnCreate##kind##Descriptor(void **descriptor)                             \
    {                                                                                \
        *descriptor = calloc(1, 256);                                                \
        return 0;                                                                    \
    }                                                                                \
    int cudnnDestroy##kind##Descriptor(void *descriptor)                             \
    {                                                                                \
        free(descriptor);                                                            \
        return 0;                                                                    \
    }
DESCRIPTOR(Activation)
DESCRIPTOR(Convolution)
DESCRIPTOR(Dropout)
DESCRIPTOR(Filter)
DESCRIPTOR(LRN)
DESCRIPTOR(Pooling)
DESCRIPTOR(ReduceTensor)
DESCRIPTOR(Tensor)

static int size_of_zero(size_t *size)
{
    *size = 0;
    return 0;
}

int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *a, void *b, size_t *size)
{
    return size_of_zero(size);
}

int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *a, void *b, size_t *size)
{
    return size_of_zero(size);
}

/* The graph interface: every description is accepted, and one plan without a workspace found. */
int cudnnBackendCreateDescriptor(int kind, void **descriptor)
{
    *descriptor = calloc(1, 256);
    return 0;
}

int cudnnBackendDestroyDescriptor(void *descriptor)
{
    free(descriptor);
    return 0;
}

int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t asked, int64_t *count,
                             void *values)
{
    /* of CUDNN_TYPE_HANDLE, DATA_TYPE, BOOLEAN, INT64, FLOAT, DOUBLE, VOID_PTR */
    static const size_t bytes[] = {8, 4, 1, 8, 4, 8, 8};
    stub_log("cudnnBackendGetAttribute name=%d type=%d asked=%lld", name, type, (long long)asked);
    if (count)
        *count = 1;
    if (values && asked && type != 15 /* BACKEND_DESCRIPTOR: the caller's own objects */)
        memset(values, 0, type < 7 && type >= 0 ? bytes[type] : 4);
    return 0;
}
