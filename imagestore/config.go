package imagestore

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"time"

	"bmc/internal/config"
	"bmc/metal"
)

// Config says where the store is and who asks. It is the image_store section
// of the daemons' configuration.
type Config struct {
	Endpoint      string `yaml:"endpoint"` // "https://host:port"
	Bucket        string `yaml:"bucket"`
	AccessKey     string `yaml:"access_key"`
	SecretKey     string `yaml:"-"` // for programs; files name a file instead
	SecretKeyFile string `yaml:"secret_key_file"`
	CAFile        string `yaml:"ca_file"` // PEM; "" means the system's roots
	Region        string `yaml:"region"`  // "" means us-east-1

	// MaxRate is how many bytes a second an agent reads from the store at most; 0: no
	// limit. A control-plane node reads no images.
	MaxRate config.Bytes `yaml:"max_rate"`
}

var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// Validate checks what can be checked without reading files or connecting.
func (c Config) Validate() error {
	if _, err := c.endpoint(); err != nil {
		return err
	}
	switch {
	case !bucketPattern.MatchString(c.Bucket):
		return metal.Invalid("image_store.bucket", "%q is not a bucket name (a-z, 0-9, . and -; 3 to 63)", c.Bucket)
	case c.MaxRate < 0:
		return metal.Invalid("image_store.max_rate", "is negative")
	case c.AccessKey == "":
		return metal.Invalid("image_store.access_key", "is missing")
	case (c.SecretKey == "") == (c.SecretKeyFile == ""):
		return metal.Invalid("image_store.secret_key_file", "is missing")
	}
	return nil
}

func (c Config) endpoint() (*url.URL, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" ||
		(u.Path != "" && u.Path != "/") || u.User != nil || u.RawQuery != "" {
		return nil, metal.Invalid("image_store.endpoint", "%q is not like https://host:port", c.Endpoint)
	}
	return u, nil
}

// secret returns the secret key; it never appears in an error.
func (c Config) secret() (string, error) {
	if c.SecretKeyFile == "" {
		return c.SecretKey, nil
	}
	f, err := os.Open(c.SecretKeyFile) //nolint:gosec // the operator names the file
	if err != nil {
		return "", metal.Invalid("image_store.secret_key_file", "cannot be read: %v", err)
	}
	defer f.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	data = bytes.TrimSpace(data)
	if err != nil || len(data) == 0 {
		return "", metal.Invalid("image_store.secret_key_file", "%s is empty or cannot be read", c.SecretKeyFile)
	}
	return string(data), nil
}

// transport bounds every phase that could hang, and keeps connections for the
// parallel requests of Has and of the agents' fetches.
func (c Config) transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   connectTimeout,
		ResponseHeaderTimeout: 30 * time.Second,
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   parallel,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true, // frames are compressed, and their digest is of what is stored
	}
	if c.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, metal.Invalid("image_store.ca_file", "cannot be read: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, metal.Invalid("image_store.ca_file", "%s holds no PEM certificate", c.CAFile)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return t, nil
}

func (c Config) String() string { return fmt.Sprintf("%s/%s", c.Endpoint, c.Bucket) }
