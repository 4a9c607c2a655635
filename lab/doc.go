// Package lab brings whole racks up on one machine: control-plane nodes, rack
// agents, an object store, and servers behind virtual controllers: QEMU machines
// with real firmware, or light machines, which are Go code that walks the same
// protocols (package light). `bmc-lab` is its command.
//
// What happened is in the lab's folder, as JSON lines: oob.jsonl has what the
// controllers were told, machines.jsonl what the light machines did.
//
// One process, the supervisor, holds everything: network namespaces without
// names, the racks' switches, the Go controllers, and all children, which the
// kernel kills when the supervisor dies. So a crash leaves nothing but files in
// the lab's folder, and the next Up takes those away.
//
//	host: 127.0.0.1:* --forward--> mgmt (10.76.0.1/24) --bridge--+-- cp1..n      10.76.0.11..
//	                                                             +-- s3          10.76.0.5
//	                                                             +-- r1-a1..n    10.76.0.101..
//	r1-a1: rack0 10.77.1.1/24 (tap) --switch--+-- QEMU machines (datagram sockets)
//	                                          +-- light machines, whose TCP is r1-light's: light0
//	                                          +-- r1-probe: rack0, no address
//	r2-relay: up0 10.77.1.251 on r1's switch, rack0 10.77.2.1/24: a router and DHCP relay, where r2 has no agents
//	r1-a1: oob0 10.78.1.1/24 --bridge-- r1: controllers, 10.78.1.11.. port 623
package lab
