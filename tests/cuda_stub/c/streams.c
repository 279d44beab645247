/* Streams, events, captures and graphs. Copies of page-locked memory wait until the host does. */
#include "stub.h"

struct graph {
    long long launches;
    size_t count;
    struct work *works;
};

struct pending {
    struct work work;
    uint64_t sum; /* of what it reads of page-locked memory, when it was queued */
    struct pending *next;
};

struct CUstream_st {
    unsigned flags;
    struct pending *first;
    int capturing; /* a cudaStreamCaptureStatus */
    enum cudaStreamCaptureMode mode;
    pthread_t owner;
    struct graph graph;
};

struct CUevent_st {
    unsigned flags;
    cudaStream_t stream; /* that it was last recorded in */
};

/* Graphs and graphs ready to launch: CUDA's CUgraph_st and CUgraphExec_st. */
struct CUgraph_st {
    struct graph graph;
};
struct CUgraphExec_st {
    struct graph graph;
};

/* All handles that exist. */
struct handle {
    enum kind { STREAM, EVENT, GRAPH, EXEC } kind;
    void *what;
    struct handle *next;
};
static struct handle *handles;

static void *add(enum kind kind, size_t size)
{
    struct handle *handle = malloc(sizeof *handle);
    *handle = (struct handle){kind, calloc(1, size), handles};
    handles = handle;
    return handle->what;
}

static int exists(enum kind kind, const void *what)
{
    for (struct handle *handle = handles; handle; handle = handle->next)
        if (handle->what == what && handle->kind == kind)
            return 1;
    return 0;
}

static cudaError_t drop(enum kind kind, void *what)
{
    for (struct handle **link = &handles; *link; link = &(*link)->next) {
        struct handle *handle = *link;
        if (handle->what == what && handle->kind == kind) {
            *link = handle->next;
            free(handle);
            free(what);
            return cudaSuccess;
        }
    }
    return stub_fault(cudaErrorInvalidResourceHandle, "a handle that does not exist");
}

static int is_default(cudaStream_t stream) { return (uintptr_t)stream <= 2; }

cudaError_t stub_check_stream(cudaStream_t stream)
{
    if (is_default(stream) || exists(STREAM, stream))
        return cudaSuccess;
    return stub_fault(cudaErrorInvalidResourceHandle, "a stream that does not exist");
}

static int captures(cudaStream_t stream)
{
    return !is_default(stream) && stream->capturing == cudaStreamCaptureStatusActive;
}

static cudaError_t invalidate(cudaStream_t stream, const char *call)
{
    stream->capturing = cudaStreamCaptureStatusInvalidated;
    stub_log("capture of stream %p ended by %s", (void *)stream, call);
    return stub_fail(cudaErrorStreamCaptureUnsupported);
}

cudaError_t stub_unsafe(const char *call)
{
    for (struct handle *handle = handles; handle; handle = handle->next) {
        cudaStream_t stream = handle->what;
        if (handle->kind != STREAM || !captures(stream))
            continue;
        int mine = pthread_equal(stream->owner, pthread_self());
        if (stream->mode == cudaStreamCaptureModeGlobal
            || (stream->mode == cudaStreamCaptureModeThreadLocal && mine))
            return invalidate(stream, call);
    }
    return cudaSuccess;
}

int stub_recorded(cudaStream_t stream, const struct work *work)
{
    if (!captures(stream))
        return 0;
    struct graph *graph = &stream->graph;
    graph->works = realloc(graph->works, (graph->count + 1) * sizeof *work);
    graph->works[graph->count++] = *work;
    return 1;
}

/* FNV-1a over every row that a copy reads. */
static uint64_t sum_of(const struct work *work)
{
    uint64_t sum = 14695981039346656037ull;
    for (size_t plane = 0; plane < work->depth; plane++)
        for (size_t row = 0; row < work->rows; row++) {
            const char *source =
                work->source + plane * work->source_slice + row * work->source_pitch;
            for (size_t i = 0; i < work->width; i++)
                sum = (sum ^ (unsigned char)source[i]) * 1099511628211ull;
        }
    return sum;
}

static int reads_pinned(const struct work *work)
{
    return work->what == COPY && stub_place(work->source) == PINNED;
}

void stub_queue(cudaStream_t stream, const struct work *work)
{
    int writes = stub_place(work->target) == PINNED, reads = reads_pinned(work);
    int pageable = stub_place(work->target) == PAGEABLE
                   || (work->what == COPY && stub_place(work->source) == PAGEABLE);
    if (is_default(stream) || pageable || !(reads || writes || stream->first)) {
        stub_flush(stream); /* such a call returns when it is done */
        stub_do(work);
        return;
    }
    struct pending **link = &stream->first;
    while (*link)
        link = &(*link)->next;
    *link = malloc(sizeof **link);
    **link = (struct pending){*work, reads ? sum_of(work) : 0, NULL};
    if (writes) {
        struct work poison = *work;
        poison.what = FILL;
        poison.value = 0xFF;
        stub_do(&poison);
    }
}

void stub_flush(cudaStream_t stream)
{
    while (!is_default(stream) && stream->first) {
        struct pending *pending = stream->first;
        stream->first = pending->next;
        if (reads_pinned(&pending->work) && sum_of(&pending->work) != pending->sum)
            stub_fault(cudaSuccess, "page-locked memory changed before the copy from it was done");
        stub_do(&pending->work);
        free(pending);
    }
}

static void flush_each(unsigned without)
{
    for (struct handle *handle = handles; handle; handle = handle->next)
        if (handle->kind == STREAM && !(((cudaStream_t)handle->what)->flags & without))
            stub_flush(handle->what);
}

void stub_flush_all(void) { flush_each(0); }

void stub_flush_blocking(void) { flush_each(cudaStreamNonBlocking); }

/* What the event was recorded behind; more may be done, as on a quick GPU. */
static void flush_event(cudaEvent_t event)
{
    if (exists(STREAM, event->stream))
        stub_flush(event->stream);
}

/* From here on the GPU is broken, if it was to be. The launch itself still succeeds. */
static void count_launch(void)
{
    if (SETTING(fail_after) && !--SETTING(fail_after)) {
        stub_broken = SETTING(fail_with);
        stub_log("broken with %d", stub_broken);
    }
}

cudaError_t stub_launch(const char *name, cudaStream_t stream)
{
    ENTER;
    cudaError_t error = stub_check_stream(stream);
    if (error)
        return error;
    int captured = captures(stream);
    stub_log("%slaunch %s stream=%p", captured ? "captured " : "", name, (void *)stream);
    if (captured) {
        stream->graph.launches++;
        COUNTER(captured_launches)++;
        return cudaSuccess;
    }
    COUNTER(launches)++;
    count_launch();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    ENTER;
    *stream = add(STREAM, sizeof **stream);
    (*stream)->flags = flags;
    COUNTER(streams)++;
    stub_log("cudaStreamCreate flags=%u -> %p", flags, (void *)*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    ENTER;
    if (exists(STREAM, stream))
        stub_flush(stream);
    cudaError_t error = drop(STREAM, stream);
    if (!error)
        COUNTER(streams)--;
    return error;
}

static cudaError_t wait_for(const char *call, cudaStream_t stream)
{
    cudaError_t error = stub_check_stream(stream);
    if (error)
        return error;
    if (captures(stream))
        return invalidate(stream, call);
    stub_flush(stream);
    COUNTER(synchronizations)++;
    stub_log("%s %p", call, (void *)stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ENTER;
    return wait_for("cudaStreamSynchronize", stream);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    ENTER;
    cudaError_t error = stub_check_stream(stream);
    if (!error)
        stub_flush(stream);
    return error;
}

cudaError_t cudaDeviceSynchronize(void)
{
    ENTER;
    cudaError_t error = stub_unsafe("cudaDeviceSynchronize");
    stub_flush_all();
    return error ? error : wait_for("cudaDeviceSynchronize", NULL);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    ENTER;
    *event = add(EVENT, sizeof **event);
    (*event)->flags = flags;
    COUNTER(events)++;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    ENTER;
    cudaError_t error = drop(EVENT, event);
    if (!error)
        COUNTER(events)--;
    return error;
}

static cudaError_t check_event(cudaEvent_t event)
{
    if (exists(EVENT, event))
        return cudaSuccess;
    return stub_fault(cudaErrorInvalidResourceHandle, "an event that does not exist");
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags)
{
    ENTER;
    stub_log("cudaEventRecord %p stream=%p", (void *)event, (void *)stream);
    cudaError_t error = check_event(event);
    if (!error)
        event->stream = stream;
    return error ? error : stub_check_stream(stream);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    ENTER;
    cudaError_t error = check_event(event);
    if (!error)
        flush_event(event);
    return error;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER;
    cudaError_t error = check_event(event);
    if (error)
        return error;
    flush_event(event);
    return wait_for("cudaEventSynchronize", NULL);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    ENTER;
    *milliseconds = 1;
    cudaError_t error = check_event(start);
    return error ? error : check_event(end);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    ENTER;
    COUNTER(event_waits)++;
    stub_log("cudaStreamWaitEvent stream=%p event=%p", (void *)stream, (void *)event);
    cudaError_t error = check_event(event);
    if (error)
        return error;
    flush_event(event);
    return stub_check_stream(stream);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    ENTER;
    cudaError_t error = stub_check_stream(stream);
    if (error)
        return error;
    stub_flush(stream);
    stub_log("cudaLaunchHostFunc stream=%p", (void *)stream);
    function(data);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    ENTER;
    cudaError_t error = stub_check_stream(stream);
    if (!error)
        *status = is_default(stream) ? cudaStreamCaptureStatusNone : stream->capturing;
    return error;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    ENTER;
    if (is_default(stream))
        return stub_fail(cudaErrorStreamCaptureUnsupported);
    cudaError_t error = stub_check_stream(stream);
    if (error)
        return error;
    if (stream->capturing)
        return stub_fault(cudaErrorIllegalState, "a capture within a capture");
    stream->capturing = cudaStreamCaptureStatusActive;
    stream->mode = mode;
    stream->owner = pthread_self();
    stream->graph = (struct graph){0};
    COUNTER(captures)++;
    stub_log("cudaStreamBeginCapture stream=%p mode=%d", (void *)stream, mode);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    ENTER;
    *graph = NULL;
    cudaError_t error = stub_check_stream(stream);
    if (error)
        return error;
    if (is_default(stream) || !stream->capturing)
        return stub_fault(cudaErrorIllegalState, "the end of a capture that was not begun");
    int whole = stream->capturing == cudaStreamCaptureStatusActive;
    stream->capturing = cudaStreamCaptureStatusNone;
    if (!whole) {
        free(stream->graph.works);
        return stub_fail(cudaErrorStreamCaptureInvalidated);
    }
    *graph = add(GRAPH, sizeof **graph);
    (*graph)->graph = stream->graph;
    stub_log("cudaStreamEndCapture stream=%p launches=%lld copies=%zu", (void *)stream,
             stream->graph.launches, stream->graph.count);
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    ENTER;
    *exec = NULL;
    if (!exists(GRAPH, graph))
        return stub_fault(cudaErrorInvalidValue, "a graph that does not exist");
    *exec = add(EXEC, sizeof **exec);
    struct graph *copy = &(*exec)->graph;
    *copy = graph->graph;
    copy->works = malloc(copy->count * sizeof *copy->works + 1);
    if (copy->count)
        memcpy(copy->works, graph->graph.works, copy->count * sizeof *copy->works);
    COUNTER(graphs)++;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    ENTER;
    if (exists(GRAPH, graph))
        free(graph->graph.works);
    return drop(GRAPH, graph);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    ENTER;
    if (exists(EXEC, exec)) {
        free(exec->graph.works);
        COUNTER(graphs)--;
    }
    return drop(EXEC, exec);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    ENTER;
    return exists(EXEC, exec) ? stub_check_stream(stream)
                              : stub_fault(cudaErrorInvalidValue, "a graph that does not exist");
}

/* The addresses of its copies were resolved while it was captured, as CUDA keeps them. */
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    ENTER;
    cudaError_t error = stub_check_stream(stream);
    if (error)
        return error;
    if (!exists(EXEC, exec))
        return stub_fault(cudaErrorInvalidValue, "a graph that does not exist");
    COUNTER(graph_launches)++;
    stub_log("cudaGraphLaunch launches=%lld copies=%zu stream=%p", exec->graph.launches,
             exec->graph.count, (void *)stream);
    for (size_t i = 0; i < exec->graph.count; i++)
        stub_queue(stream, &exec->graph.works[i]);
    count_launch();
    return cudaSuccess;
}
