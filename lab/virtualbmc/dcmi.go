package virtualbmc

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// What a lab's machine is said to draw: nobody measures anything here.
const (
	wattsOn  = 120
	wattsOff = 8 // the controller itself
)

// draw answers Get Power Reading (DCMI 1.5 section 6.6.1) in its basic mode.
func draw(m Machine) handlers.HandlerFunc {
	return func(_ context.Context, _ *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
		if len(req) < 4 || req[0] != types.GroupExtensionDCMI || req[1] != 1 {
			return nil, types.CompletionCode(0xcc), nil // invalid data field
		}
		watts := uint16(wattsOff)
		if m.State().On {
			watts = wattsOn
		}
		resp := []byte{types.GroupExtensionDCMI}
		for range 4 { // now, least, greatest, average
			resp = binary.LittleEndian.AppendUint16(resp, watts)
		}
		resp = binary.LittleEndian.AppendUint32(resp, uint32(time.Now().Unix()))
		resp = binary.LittleEndian.AppendUint32(resp, 1000) // ms of the statistics
		return append(resp, 1<<6), types.CodeOK, nil        // measurement active
	}
}
