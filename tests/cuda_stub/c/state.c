/* Counters, settings, the log, and errors. */
#include "stub.h"

#include <stdarg.h>

long long stub_counters[] = {
#define X(name) 0,
    COUNTERS(X)
#undef X
};
static const char *const counter_names[] = {
#define X(name) #name,
    COUNTERS(X)
#undef X
};
long long stub_settings[] = {
#define X(name, value) value,
    SETTINGS(X)
#undef X
};
static const char *const setting_names[] = {
#define X(name, value) #name,
    SETTINGS(X)
#undef X
};

cudaError_t stub_broken = cudaSuccess;
static __thread cudaError_t last_error = cudaSuccess;
static pthread_mutex_t mutex;
static FILE *file;

__attribute__((constructor)) static void begin(void)
{
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &recursive);
    for (size_t i = 0; i < sizeof setting_names / sizeof *setting_names; i++) {
        char variable[64] = "CUDA_STUB_";
        size_t end = strlen(variable);
        for (const char *c = setting_names[i]; *c; c++)
            variable[end++] = *c == '_' ? '_' : *c - 'a' + 'A';
        const char *value = getenv(variable);
        if (value && *value)
            stub_settings[i] = atoll(value);
    }
    const char *path = getenv("CUDA_STUB_LOG");
    if (path && *path && (file = fopen(path, "a")))
        setvbuf(file, NULL, _IOLBF, 0);
}

void stub_lock(void) { pthread_mutex_lock(&mutex); }

void stub_unlock(int *unused)
{
    (void)unused;
    pthread_mutex_unlock(&mutex);
}

void stub_log(const char *format, ...)
{
    if (!file)
        return;
    LOCK;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
}

/* The counter's value; -1 if there is none of that name. */
long long stub_counter(const char *name)
{
    LOCK;
    for (size_t i = 0; i < sizeof counter_names / sizeof *counter_names; i++)
        if (!strcmp(name, counter_names[i]))
            return stub_counters[i];
    return -1;
}

/* The setting's value now; -1 if there is none of that name. */
long long stub_setting(const char *name)
{
    LOCK;
    for (size_t i = 0; i < sizeof setting_names / sizeof *setting_names; i++)
        if (!strcmp(name, setting_names[i]))
            return stub_settings[i];
    return -1;
}

/* Returns whether there is such a setting. `fail_after` 0 also mends a broken GPU. */
int stub_set(const char *name, long long value)
{
    LOCK;
    for (size_t i = 0; i < sizeof setting_names / sizeof *setting_names; i++)
        if (!strcmp(name, setting_names[i])) {
            stub_settings[i] = value;
            if (i == SET_fail_after)
                stub_broken = cudaSuccess;
            return 1;
        }
    return 0;
}

/* The name of the counter of that number, from 0; NULL after the last. */
const char *stub_counter_name(size_t number)
{
    return number < sizeof counter_names / sizeof *counter_names ? counter_names[number] : NULL;
}

cudaError_t stub_fail(cudaError_t error)
{
    if (error)
        last_error = error;
    return error;
}

cudaError_t stub_fault(cudaError_t error, const char *why)
{
    COUNTER(faults)++;
    stub_log("fault %d: %s", error, why);
    return stub_fail(error);
}

int stub_ignore(const char *name)
{
    LOCK;
    stub_log("%s", name);
    return stub_broken;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = stub_broken ? stub_broken : last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return stub_broken ? stub_broken : last_error; }

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error)
            return errors[i].name;
    return "an error that the stubs do not name";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error)
            return errors[i].text;
    return "an error that the stubs do not name";
}
