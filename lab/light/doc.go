// Package light simulates servers without a CPU: Go machines that walk the
// protocols of a real boot (DHCP, TFTP, HTTP, the ramdisk's gRPC, SSH) against
// the real agents, hundreds in a rack. They are a simulation, for scale and for
// faults. They say nothing about firmware, kernels, drivers or the ramdisk's own
// program: QEMU machines with the real ones do. In particular
//
//   - the loader, the kernel and the ramdisk are fetched and not run;
//   - holes of the sparse file that is a disk are known to be zero from the file
//     system, and are not read;
//   - of an image's signature nothing is checked, its digests are;
//   - an installed system is a record at the disk's end, beside the image, and
//     shows its SSH host key to whoever asks; nobody can log in.
//
// No parser is shared with what is tested: the codecs of DHCP, TFTP, iPXE's
// script, the initrd, its seed and the manifest are written here, from the RFCs
// and from the formats' descriptions. Shared are the generated code of
// api/agent/v1, the codes of metal, and libraries: gRPC, TLS, HTTP, zstd, SSH.
//
// On the wire each machine has its own MAC on a port of the rack's switch, for
// all its traffic, so that faults of ports find it. Its TCP is the kernel's: the
// machines of a rack share a network namespace with one interface, which has the
// address of every machine that is on, and Rack translates between that
// interface's MAC and theirs.
//
// The record has every DHCP answer that reached a machine, taken or not; a
// Stranger, which nobody has enrolled, asks and records that none comes.
package light
