package goipmi

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"
)

// A packet of RMCP+ (IPMI 2.0 table 13-8): 4 bytes of RMCP, then these.
const (
	authTypeAt, rmcpPlus = 4, 6
	payloadTypeAt        = 5 // bit 7: encrypted, bit 6: authenticated
	sessionAt            = 6
	sequenceAt           = 10
	lengthAt             = 14
	payloadAt            = 16
)

const (
	payloadIPMI   = 0x00
	encrypted     = 0x80
	authenticated = 0x40
	nextHeader    = 0x07
)

var rmcpHeader = []byte{6, 0, 0xff, 7} // version 1.0, no acknowledge, class IPMI

// session is one that stands: its keys, its counters, and nothing that waits. It
// is not safe for concurrent use.
type session struct {
	console, bmc uint32 // its IDs, here and at the controller
	integrity    types.IntegrityAlg
	crypt        types.CryptAlg
	k1           []byte
	block        cipher.Block // of K2; nil: not encrypted
	password     string       // part of one integrity algorithm
	sequence     uint32       // of the last packet
	inbound      window       // of the controller's
	rqSeq        uint8        // of the last request; six bits
}

// request packs a command. Its number tells the answer from others'.
func (s *session) request(cmd types.Command, data []byte) (packet []byte, rqSeq uint8, err error) {
	s.rqSeq = s.rqSeq%types.IPMIRequesterSequenceMax + 1
	message := append(make([]byte, 0, 7+len(data)), 0x20, uint8(cmd.NetFn)<<2, 0, 0x81, s.rqSeq<<2, cmd.ID)
	message = append(message, data...)
	message[2] = checksum(message[:2])
	packet, err = s.seal(append(message, checksum(message[3:])))
	return packet, s.rqSeq, err
}

// checksum is the 8-bit two's complement of section 13.8.
func checksum(b []byte) (sum uint8) {
	for _, v := range b {
		sum -= v
	}
	return sum
}

// seal encrypts and signs a message (sections 13.28 and 13.29).
func (s *session) seal(message []byte) ([]byte, error) {
	s.sequence++
	p := append(make([]byte, 0, 96+len(message)), rmcpHeader...)
	p = append(p, rmcpPlus, payloadIPMI)
	p = binary.LittleEndian.AppendUint32(p, s.bmc)
	p = binary.LittleEndian.AppendUint32(p, s.sequence)
	p = append(p, 0, 0)
	if s.block != nil {
		p[payloadTypeAt] |= encrypted
		padded := crypto.PadAES(message)
		p = append(p, make([]byte, aes.BlockSize+len(padded))...)
		iv := p[payloadAt : payloadAt+aes.BlockSize]
		_, _ = rand.Read(iv) // never fails
		cipher.NewCBCEncrypter(s.block, iv).CryptBlocks(p[payloadAt+aes.BlockSize:], padded)
	} else {
		p = append(p, message...)
	}
	binary.LittleEndian.PutUint16(p[lengthAt:], uint16(len(p)-payloadAt))
	if s.integrity == types.IntegrityAlg_None {
		return p, nil
	}
	p[payloadTypeAt] |= authenticated
	pad := 0
	for (len(p)-authTypeAt+2)%4 != 0 {
		p = append(p, 0xff)
		pad++
	}
	p = append(p, uint8(pad), nextHeader)
	code, err := crypto.SessionIntegrityAuthCode(s.integrity, p[authTypeAt:], s.k1, s.password)
	if err != nil {
		return nil, err
	}
	return append(p, code...), nil
}

// open checks and decrypts a packet: nil, unless it is a message to this session
// that whoever holds its keys has made, and did not come before. Nothing else is
// looked at. A session without signatures has no sequence that could be believed.
func (s *session) open(p []byte) []byte {
	want := byte(payloadIPMI)
	if s.block != nil {
		want |= encrypted
	}
	if s.integrity != types.IntegrityAlg_None {
		want |= authenticated
	}
	if len(p) < payloadAt || p[authTypeAt] != rmcpPlus || p[payloadTypeAt] != want || binary.LittleEndian.Uint32(p[sessionAt:]) != s.console {
		return nil
	}
	end := payloadAt + int(binary.LittleEndian.Uint16(p[lengthAt:]))
	codeLen, _ := crypto.IntegrityAuthCodeLen(s.integrity)
	if end > len(p)-codeLen {
		return nil
	}
	if codeLen > 0 {
		signed := p[authTypeAt : len(p)-codeLen]
		code, err := crypto.SessionIntegrityAuthCode(s.integrity, signed, s.k1, s.password)
		if err != nil || !hmac.Equal(code, p[len(p)-codeLen:]) {
			return nil
		}
		if !s.inbound.accept(binary.LittleEndian.Uint32(p[sequenceAt:])) {
			return nil
		}
	}
	payload := p[payloadAt:end]
	if s.block == nil {
		return payload
	}
	if len(payload) < 2*aes.BlockSize || len(payload)%aes.BlockSize != 0 {
		return nil
	}
	plain := make([]byte, len(payload)-aes.BlockSize)
	cipher.NewCBCDecrypter(s.block, payload[:aes.BlockSize]).CryptBlocks(plain, payload[aes.BlockSize:])
	pad := int(plain[len(plain)-1])
	if pad >= len(plain) {
		return nil
	}
	return plain[:len(plain)-1-pad]
}

// answer is what a packet answers to one of those requests of a command: its data, or
// the refusal. ok is false when it is no answer to any. A packet can be asked once.
func (s *session) answer(p []byte, cmd types.Command, rqSeq ...uint8) (data []byte, ok bool, err error) {
	m := s.open(p)
	if len(m) < 8 || m[1]>>2 != uint8(cmd.NetFn)|1 || !slices.Contains(rqSeq, m[4]>>2) || m[5] != cmd.ID {
		return nil, false, nil
	}
	if cc := m[6]; cc != 0 {
		return nil, true, types.NewResponseError(types.CompletionCode(cc), fmt.Sprintf("%s: completion code %#02x: %s", cmd.Name, cc, types.StrCC(cmd, cc)))
	}
	return m[7 : len(m)-1], true, nil
}
