# The CUDA driver's functions, as a DriverTable has them. They raise where there is no driver: see cuda_table().
from kvit._native.driver_table cimport DriverTable

cdef void fill_table(DriverTable *table) noexcept

# The driver's name of a status, NULL where it has none.
cdef const char *name_of(int status) noexcept nogil
