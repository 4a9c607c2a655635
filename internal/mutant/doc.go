// Package mutant lets tests prove that checks find what they are for: at some
// places a program built with the tag "mutants" does wrong on purpose, when the
// environment variable BMC_MUTANT names that place. Programs built without the
// tag hold only a function that says no, which the compiler removes.
//
// chaos/mutants lists all mutants, and the invariant that each one breaks.
package mutant
