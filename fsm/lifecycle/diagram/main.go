// Command diagram prints docs/lifecycle.md, drawn from the transition table.
package main

import (
	"fmt"

	"bmc/fsm/lifecycle"
)

func main() { fmt.Print(lifecycle.Document()) }
