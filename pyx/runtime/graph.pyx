"""Work captured from a stream, to be launched as a whole."""
cimport cython

from kvit._native.context cimport no_device
from kvit._native.driver_table cimport CAPTURE_UNSUPPORTED, SUCCESS
from kvit._native.errors cimport check
from kvit._native.host cimport host_graph_failed
from kvit._native.stream cimport Stream, stream_of

from kvit.errors import DeviceError, DriverError, refuse_copy


cdef class Restorable:
    """Base of what a graph restores after a launch that failed."""

    cdef void restore(self) noexcept:
        pass


@cython.no_gc_clear
cdef class Graph:
    """Work of one stream, captured once and launched as a whole as often as wanted, for one driver call.

        stream = kvit.Stream("cuda:0")
        with kvit.Graph.capture(stream) as graph:
            append(k, v, view, table, stream=stream)
            op(q, view, table, out=out, stream=stream)
        graph.launch()

    Inside the block nothing runs. Every launch reads afresh what the arguments hold by then: tokens, page tables,
    lengths, scales, K and V may be rewritten between launches; shapes and addresses stay. Calls that allocate, wait, or
    copy from or to the host cannot be captured: give `out` and `lse`, and tables on the device. The graph keeps
    the Buffers and Tensors of its calls alive. On the host, work is recorded and done again.
    """

    def __cinit__(self):
        self.dev = no_device()
        self.state = OVER

    def __init__(self):
        raise TypeError("`with Graph.capture(stream) as graph:` makes one")

    @staticmethod
    def capture(Stream stream not None) -> Graph:
        """A graph of what is given to `stream` inside of `with`.

        stream  any but the default one, which cannot be captured

        The block raises DriverError where a call in it cannot be captured; an exception of the block ends the capture.
        Raises DeviceError for the default stream.
        """
        cdef Graph graph = Graph.__new__(Graph)
        if stream.c_stream == NULL:
            raise DeviceError(f"the default stream of {stream.dev} cannot be captured; give a kvit.Stream of its own")
        graph.dev = stream.dev
        graph.state = NEW
        graph.stream = stream
        graph.kept = []
        return graph

    def __enter__(self):
        cdef int status
        cdef int entered
        if self.state != NEW:
            raise DriverError("a graph is captured once; make another by Graph.capture(stream)")
        if self.stream.kept is not None:
            raise DriverError("the stream is being captured already; end that `with` first, or use another stream")
        entered = self.dev.enter()
        try:
            with nogil:
                status = self.dev.driver.capture_begin(self.stream.c_stream)
            check(status, b"cuStreamBeginCapture")
        finally:
            self.dev.leave(entered)
        self.state = CAPTURING
        self.stream.kept = self.kept
        return self

    def __exit__(self, kind, error, traceback):
        cdef int entered = self.dev.enter()
        self.stream.kept = None
        self.state = OVER
        try:
            self.end(error is None)
        finally:
            self.dev.leave(entered)
            if self.state != READY:
                self.kept = []

    cdef int end(self, bint is_whole) except -1:
        """End the capture; make the graph ready, or drop it where the block did not come to its end."""
        cdef void *graph = NULL
        cdef int status
        with nogil:
            status = self.dev.driver.capture_end(self.stream.c_stream, &graph)
        if not is_whole:  # the exception says more than a status that follows from it
            if graph != NULL:
                self.dev.driver.graph_destroy(graph)
            return 0
        check(status, b"cuStreamEndCapture")
        with nogil:
            status = self.dev.driver.graph_instantiate(&self.executable, graph)
        if status != SUCCESS:
            self.dev.driver.graph_destroy(graph)
        check(status, b"cuGraphInstantiate")
        self.state = READY
        return 0

    def __dealloc__(self):
        cdef int entered
        if self.executable != NULL:
            try:
                entered = self.dev.enter()
                self.dev.driver.executable_destroy(self.executable)  # work under way goes on to its end
                self.dev.leave(entered)
            except Exception:  # the driver is going away with the process
                pass

    def launch(self, stream=None):
        """Give all the work to a stream. Returns before it is done, but on the host.

        stream  of the graph's device: Stream, int handle, or an object with __cuda_stream__; the captured one if absent

        Two launches of a graph never run side by side. Raises DeviceError, DriverError (the stream is being captured:
        a graph does not become part of another); HostBackendError on the host.
        """
        cdef int status
        cdef int entered
        cdef Stream on_stream = self.stream if stream is None else stream_of(stream, self.dev)
        if self.state != READY:
            raise DriverError("the graph has nothing to launch: its `with` block is still open, or did not end well")
        entered = self.dev.enter()
        try:
            with nogil:
                status = self.dev.driver.graph_launch(self.executable, on_stream.c_stream)
            if status != SUCCESS and status != CAPTURE_UNSUPPORTED and self.dev.is_host:
                for kept in self.kept:
                    if isinstance(kept, Restorable):
                        (<Restorable>kept).restore()
                host_graph_failed(self.executable)
            check(status, b"cuGraphLaunch")
        finally:
            self.dev.leave(entered)

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it is work of the driver; capture the work again")

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return self.dev.spec

    @property
    def is_ready(self) -> bool:
        """Whether it can be launched: captured to the end."""
        return self.state == READY

    def __repr__(self):
        words = {NEW: "not captured yet", CAPTURING: "being captured", READY: "ready", OVER: "not captured"}
        return f"Graph(device={self.dev.spec!r}, {words[self.state]})"
