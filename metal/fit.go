package metal

import "fmt"

// Lacks says what hardware is missing for a size, as a sentence for people, or
// "" when it fits. Firmware and kernel keep some memory for themselves, so an
// eighth may be missing.
func (s *Size) Lacks(h *Hardware) string {
	switch disk := h.LargestDisk(); {
	case h.CPUThreads < s.MinCPUThreads:
		return fmt.Sprintf("it has %d CPU threads, size %s has %d", h.CPUThreads, s.Name, s.MinCPUThreads)
	case h.MemoryBytes < s.MinMemoryBytes-s.MinMemoryBytes/8:
		return fmt.Sprintf("it has %s of memory, size %s has %s", Bytes(h.MemoryBytes), s.Name, Bytes(s.MinMemoryBytes))
	case disk < s.MinDiskBytes:
		return fmt.Sprintf("its largest disk has %s, size %s has %s", Bytes(disk), s.Name, Bytes(s.MinDiskBytes))
	}
	return ""
}

// LargestDisk is the size of the largest fixed disk, bytes; 0 for none.
func (h *Hardware) LargestDisk() uint64 {
	var n uint64
	for _, d := range h.Disks {
		if !d.Removable {
			n = max(n, d.SizeBytes)
		}
	}
	return n
}

// Larger orders sizes by memory, CPU threads, disk and name.
func (s *Size) Larger(o *Size) bool {
	switch {
	case s.MinMemoryBytes != o.MinMemoryBytes:
		return s.MinMemoryBytes > o.MinMemoryBytes
	case s.MinCPUThreads != o.MinCPUThreads:
		return s.MinCPUThreads > o.MinCPUThreads
	case s.MinDiskBytes != o.MinDiskBytes:
		return s.MinDiskBytes > o.MinDiskBytes
	}
	return s.Name > o.Name
}

// Bytes writes a size for people, in binary units: 7.5 GiB.
func Bytes(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	if f == float64(int(f)) {
		return fmt.Sprintf("%d %ciB", int(f), units[i])
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
