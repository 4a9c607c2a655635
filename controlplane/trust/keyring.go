package trust

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// KeySize of every key in a keyring, in bytes.
const KeySize = 32

const keyIDSize = 8

// Keyring holds the keys that every node has and no client: to seal secrets
// before they enter the log, to authenticate requests, and for gossip. It lives
// in a file of its own outside the data directory, so that a copy of the data
// directory or of a snapshot opens no sealed secret. It holds the CA, too: with a
// snapshot it makes the cluster anew, where the agents' certificates still count.
type Keyring struct {
	Active string            `json:"active"` // ID of the key that seals
	Keys   map[string][]byte `json:"keys"`   // by ID: 8 hex characters
	MACKey []byte            `json:"mac_key"`
	Gossip []byte            `json:"gossip_key"`
	CA     []byte            `json:"ca,omitempty"`     // certificate, DER
	CAKey  []byte            `json:"ca_key,omitempty"` // PKCS #8, DER
}

// NewKeyring draws new keys.
func NewKeyring() (*Keyring, error) {
	buf := make([]byte, keyIDSize/2+3*KeySize)
	if _, err := io.ReadFull(rand.Reader, buf); err != nil {
		return nil, fmt.Errorf("draw a keyring: %w", err)
	}
	id, buf := hex.EncodeToString(buf[:keyIDSize/2]), buf[keyIDSize/2:]
	return &Keyring{Active: id, Keys: map[string][]byte{id: buf[:KeySize]},
		MACKey: buf[KeySize : 2*KeySize], Gossip: buf[2*KeySize:]}, nil
}

// ParseKeyring reads what JSON wrote.
func ParseKeyring(data []byte) (*Keyring, error) {
	k := &Keyring{}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(k); err != nil {
		return nil, errors.New("the keyring is not valid JSON of a keyring") // its content stays out of the error
	}
	for id, key := range k.Keys {
		if len(id) != keyIDSize || len(key) != KeySize {
			return nil, errors.New("the keyring holds a key of the wrong size")
		}
	}
	if k.Keys[k.Active] == nil || len(k.MACKey) != KeySize || len(k.Gossip) != KeySize {
		return nil, errors.New("the keyring lacks a key")
	}
	return k, nil
}

// JSON is the keyring as it is stored and as a joining node receives it.
func (k *Keyring) JSON() ([]byte, error) { return json.MarshalIndent(k, "", "  ") }

// Seal encrypts with AES-256-GCM under the active key. The result holds the
// key's ID and a random nonce; it opens only with the same associated text,
// which names the secret ("srv-…/oob"), so that nobody can move it.
func (k *Keyring) Seal(plain []byte, associated string) ([]byte, error) {
	gcm, err := k.gcm(k.Active)
	if err != nil {
		return nil, err
	}
	out := make([]byte, keyIDSize+gcm.NonceSize(), keyIDSize+gcm.NonceSize()+len(plain)+gcm.Overhead())
	copy(out, k.Active)
	nonce := out[keyIDSize:]
	if _, err := io.ReadFull(rand.Reader, nonce); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	return gcm.Seal(out, nonce, plain, []byte(k.Active+"\x00"+associated)), nil
}

// Open decrypts what Seal made.
func (k *Keyring) Open(sealed []byte, associated string) ([]byte, error) {
	if len(sealed) < keyIDSize {
		return nil, errors.New("the sealed secret is too short")
	}
	id := string(sealed[:keyIDSize])
	gcm, err := k.gcm(id)
	if err != nil {
		return nil, err
	}
	rest := sealed[keyIDSize:]
	if len(rest) < gcm.NonceSize() {
		return nil, errors.New("the sealed secret is too short")
	}
	plain, err := gcm.Open(nil, rest[:gcm.NonceSize()], rest[gcm.NonceSize():], []byte(id+"\x00"+associated))
	if err != nil {
		return nil, fmt.Errorf("the sealed secret of %s does not open", associated)
	}
	return plain, nil
}

func (k *Keyring) gcm(id string) (cipher.AEAD, error) {
	key := k.Keys[id]
	if key == nil {
		return nil, fmt.Errorf("the keyring has no key %q", id)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// MAC is HMAC-SHA256 under a key that every node has and no client.
func (k *Keyring) MAC(data []byte) []byte {
	h := hmac.New(sha256.New, k.MACKey)
	h.Write(data)
	return h.Sum(nil)
}
