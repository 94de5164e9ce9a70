# The host behind the DriverTable: memory, events and devices.
from kvit._native.driver_table cimport DriverTable

# Memory, streams and events of the host: everything has happened when the call returns, or is recorded for a graph.
cdef const DriverTable *host_table() noexcept nogil
