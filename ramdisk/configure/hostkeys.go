package configure

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"path"
	"strings"

	"golang.org/x/crypto/ssh"
)

const sshDir = "etc/ssh"

// hostKeys makes the server's SSH host key, the one by which the agent and
// every user know it, and removes any that came with the image. The private
// half is in OpenSSH's format; it exists on the server's disk only.
func (t *target) hostKeys() (public string, err error) {
	names, err := t.hostKeyFiles()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if err := t.remove(path.Join(sshDir, name)); err != nil {
			return "", err
		}
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make a host key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, t.p.Hostname)
	if err != nil {
		return "", fmt.Errorf("make a host key: %w", err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("make a host key: %w", err)
	}
	line := string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(sshPub)))
	if err := t.write(sshDir+"/ssh_host_ed25519_key", pem.EncodeToMemory(block), 0o600); err != nil {
		return "", err
	}
	if err := t.write(sshDir+"/ssh_host_ed25519_key.pub", []byte(line+" "+t.p.Hostname+"\n"), 0o644); err != nil {
		return "", err
	}
	return line, nil
}

func (t *target) hostKeyFiles() ([]string, error) {
	if err := t.root.MkdirAll(sshDir, 0o755); err != nil {
		return nil, err
	}
	dir, err := t.root.Open(sshDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range entries {
		if strings.HasPrefix(n, "ssh_host_") {
			names = append(names, n)
		}
	}
	return names, nil
}
