package hardware

import (
	"encoding/binary"
	"fmt"

	agentv1 "bmc/api/agent/v1"
)

// States of a disk's health, as the control plane knows them (metal.DiskHealth).
const (
	healthOK      = "ok"
	healthFailing = "failing"
)

const (
	nvmeLogBytes = 512 // SMART / Health Information (NVM Express 2.0, 5.16.1.3)
	ataDataBytes = 512 // SMART READ DATA (ACS-3, 7.46)
)

// nvmeWarnings are the bits of the log's critical warning.
var nvmeWarnings = []string{"spare capacity is below its threshold", "temperature is past a threshold", "reliability is degraded",
	"it has become read-only", "its backup of volatile memory has failed", "its persistent memory has become read-only"}

// parseNVMe reads an NVMe disk's health log.
func parseNVMe(log []byte) *agentv1.DiskHealth {
	if len(log) < nvmeLogBytes {
		return nil
	}
	h := &agentv1.DiskHealth{State: healthOK, PercentUsed: uint32(log[5]), PowerOnHours: binary.LittleEndian.Uint64(log[128:]),
		Reallocated: binary.LittleEndian.Uint64(log[160:])}
	if k := int32(binary.LittleEndian.Uint16(log[1:])); k > 0 {
		h.TemperatureCelsius = k - 273
	}
	for i, why := range nvmeWarnings {
		// A hot disk is not a failing one.
		if log[0]&(1<<i) != 0 && i != 1 {
			h.State, h.Reason = healthFailing, why
			break
		}
	}
	if h.State == healthOK && h.PercentUsed >= 100 {
		h.State, h.Reason = healthFailing, fmt.Sprintf("%d %% of its rated endurance is used", h.PercentUsed)
	}
	return h
}

// Attributes of SMART data. What they mean is the vendors' custom, which for
// these is the same with all of them.
const (
	ataReallocated   = 5
	ataPowerOnHours  = 9
	ataWearLeveling  = 177
	ataAirflow       = 190
	ataTemperature   = 194
	ataLifetimeUsed  = 202
	ataLifeLeft      = 231
	ataMediaWearout  = 233
	ataAttributes    = 30
	ataAttributeSize = 12
)

// parseATA reads an ATA disk's SMART data; failing is what SMART RETURN STATUS says.
func parseATA(data []byte, failing bool) *agentv1.DiskHealth {
	if len(data) < ataDataBytes {
		return nil
	}
	sum := byte(0)
	for _, b := range data[:ataDataBytes] {
		sum += b
	}
	if sum != 0 {
		return nil
	}
	h := &agentv1.DiskHealth{State: healthOK}
	for i := range ataAttributes {
		a := data[2+i*ataAttributeSize:][:ataAttributeSize]
		var raw [8]byte
		copy(raw[:6], a[5:11])
		n := binary.LittleEndian.Uint64(raw[:])
		switch id, value := a[0], a[3]; id {
		case ataReallocated:
			h.Reallocated = n
		case ataPowerOnHours:
			h.PowerOnHours = n & 0xffffffff // some count milliseconds above
		case ataTemperature:
			h.TemperatureCelsius = int32(int8(raw[0]))
		case ataAirflow:
			if h.TemperatureCelsius == 0 {
				h.TemperatureCelsius = int32(int8(raw[0]))
			}
		case ataWearLeveling, ataLifeLeft, ataMediaWearout, ataLifetimeUsed:
			if value > 0 && value <= 100 { // what is left
				h.PercentUsed = max(h.PercentUsed, 100-uint32(value))
			}
		}
	}
	if failing {
		h.State, h.Reason = healthFailing, "its own self-assessment (SMART) says so"
	}
	return h
}

// parseExceptions reads a SCSI disk's informational exceptions log page (SPC-4,
// 7.3.8): an additional sense code of 0x5d predicts a failure.
func parseExceptions(page []byte) *agentv1.DiskHealth {
	if len(page) < 11 || page[0]&0x3f != 0x2f || binary.BigEndian.Uint16(page[4:]) != 0 {
		return nil
	}
	h := &agentv1.DiskHealth{State: healthOK}
	if t := page[10]; t != 0xff {
		h.TemperatureCelsius = int32(t)
	}
	if page[8] == 0x5d {
		h.State, h.Reason = healthFailing, fmt.Sprintf("it predicts its failure (5d/%02x)", page[9])
	}
	return h
}
