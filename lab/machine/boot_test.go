package machine

import "testing"

func TestBootOrder(t *testing.T) {
	type step struct {
		set  *Override
		boot Device // the device that this boot must try first, when set is nil
	}
	set := func(d Device, persistent bool) step { return step{set: &Override{Device: d, Persistent: persistent}} }
	boot := func(d Device) step { return step{boot: d} }
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"network first by default", []step{boot(Network), boot(Network)}},
		{"persistent disk", []step{set(Disk, true), boot(Disk), boot(Disk)}},
		{"one-shot network, then back to disk", []step{set(Disk, true), boot(Disk), set(Network, false), boot(Network), boot(Disk), boot(Disk)}},
		{"one-shot disk, then back to the network", []step{set(Disk, false), boot(Disk), boot(Network)}},
		{"the last one-shot counts", []step{set(Disk, false), set(Network, false), boot(Network), boot(Network)}},
		{"a persistent override drops an older one-shot", []step{set(Network, false), set(Disk, true), boot(Disk)}},
		{"none clears all", []step{set(Disk, true), set(Network, false), set(Default, false), boot(Network)}},
		{"persistent network", []step{set(Disk, true), set(Network, true), boot(Network), boot(Network)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b BootOrder
			for i, s := range tc.steps {
				if s.set != nil {
					if err := b.Set(*s.set); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if got := b.First(); got != s.boot {
					t.Fatalf("step %d: boots from %s, want %s", i, got, s.boot)
				}
				b.Boots()
				b.Booted()
			}
		})
	}
	b := BootOrder{}
	for _, err := range []error{b.Set(Override{Device: Disk, Persistent: true}), b.Set(Override{Device: Network})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b.Boots()
	if err := b.Set(Override{Device: Network}); err != nil { // while the boot is under way
		t.Fatal(err)
	}
	b.Booted()
	if b.First() != Network {
		t.Fatal("a boot used up an override that came after it began")
	}
	if err := b.Set(Override{Device: "floppy"}); err == nil {
		t.Fatal("accepted an unknown device")
	}
}
