// Package metal is the domain: the nouns of bare-metal provisioning, their
// limits and their words. It imports the standard library alone, so that the
// state machine, the agents, the ramdisk and the CLI can all speak it.
package metal
