"""Ray and its machines: sessions, sizes, nodes, groups of workers."""
