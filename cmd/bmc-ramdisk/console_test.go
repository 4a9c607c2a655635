package main

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
)

func TestConsoleLines(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(newConsole(&b)).With("server", "srv-1")
	log.Debug("hidden")
	log.Info("network is up", "addr", "10.0.0.1/24")
	log.Error("no luck", "err", errors.New("two words\nand a line"))
	want := "bmc: network is up server=srv-1 addr=10.0.0.1/24\n" +
		"bmc: error: no luck server=srv-1 err=\"two words\\nand a line\"\n"
	if b.String() != want {
		t.Errorf("got %q", b.String())
	}
}
