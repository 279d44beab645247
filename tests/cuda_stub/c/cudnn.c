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

#define DESCRIPTOR_OF(kind)                                                          \
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
DESCRIPTOR_OF(Activation)
DESCRIPTOR_OF(Convolution)
DESCRIPTOR_OF(Dropout)
DESCRIPTOR_OF(Filter)
DESCRIPTOR_OF(LRN)
DESCRIPTOR_OF(Pooling)
DESCRIPTOR_OF(ReduceTensor)
DESCRIPTOR_OF(Tensor)

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

enum type { /* a cudnnBackendAttributeType_t, as far as it matters here */
    BOOLEAN = 2, FLOAT = 4, VOID_PTR = 6, NUMERICAL_NOTE = 11, DESCRIPTOR = 15, BEHAVIOR_NOTE = 19
};

static size_t size_of(enum type type)
{
    return type == BOOLEAN ? 1 : type == FLOAT ? 4 : type <= VOID_PTR && type != 1 ? 8 : 4;
}

/* No engine has notes; of anything else there is one, and it is zero. */
int cudnnBackendGetAttribute(void *descriptor, int name, enum type type, int64_t asked,
                             int64_t *count, void *values)
{
    int none = type == NUMERICAL_NOTE || type == BEHAVIOR_NOTE;
    stub_log("cudnnBackendGetAttribute name=%d type=%d asked=%lld", name, type, (long long)asked);
    if (count)
        *count = none ? 0 : 1;
    if (values && asked && !none && type != DESCRIPTOR) /* descriptors are the caller's own */
        memset(values, 0, size_of(type));
    return 0;
}
