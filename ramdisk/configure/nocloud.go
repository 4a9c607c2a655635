package configure

import (
	"encoding/json"
	"fmt"
)

const seedDir = "var/lib/cloud/seed/nocloud/"

// noCloud writes cloud-init's seed. JSON is YAML, and needs no quoting rules.
// User data may hold secrets: root alone reads it.
func (t *target) noCloud() error {
	meta, err := json.Marshal(map[string]any{
		"instance-id":    t.p.InstanceID,
		"local-hostname": t.p.Hostname,
		"public-keys":    t.p.SSHKeys,
	})
	if err != nil {
		return err
	}
	user := t.p.UserData
	if len(user) == 0 {
		user = []byte("#cloud-config\n{}\n")
	}
	// The host key is recorded: cloud-init must not make another one.
	settings := "datasource_list: [NoCloud, None]\nssh_deletekeys: false\nssh_genkeytypes: []\n"
	files := []struct {
		name string
		data []byte
	}{
		{seedDir + "meta-data", meta}, {seedDir + "user-data", user},
		{"etc/cloud/cloud.cfg.d/99-bmc.cfg", []byte(settings)},
	}
	if t.address.IsValid() {
		network, err := t.networkConfig()
		if err != nil {
			return err
		}
		files = append(files, struct {
			name string
			data []byte
		}{seedDir + "network-config", network})
	}
	for _, f := range files {
		if err := t.write(f.name, f.data, 0o600); err != nil {
			return fmt.Errorf("cloud-init's seed: %w", err)
		}
	}
	return nil
}

// networkConfig is cloud-init's network configuration, version 2.
func (t *target) networkConfig() ([]byte, error) {
	nic := map[string]any{
		"match":     map[string]string{"macaddress": t.p.MAC},
		"addresses": []string{t.address.String()},
	}
	if t.gateway.IsValid() {
		to := "0.0.0.0/0"
		if t.gateway.Is6() {
			to = "::/0"
		}
		nic["routes"] = []map[string]string{{"to": to, "via": t.gateway.String()}}
	}
	if len(t.dns) > 0 {
		nic["nameservers"] = map[string]any{"addresses": t.dns}
	}
	return json.Marshal(map[string]any{"version": 2, "ethernets": map[string]any{"bmc": nic}})
}
