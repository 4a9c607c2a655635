package virtualbmc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"bmc/lab/machine"
)

// Paths of the simulated service.
const (
	redfishRoot     = "/redfish/v1/"
	redfishSessions = "/redfish/v1/SessionService/Sessions"
	redfishSystems  = "/redfish/v1/Systems"
	redfishSystem   = "/redfish/v1/Systems/1"
	redfishReset    = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
	redfishChassis  = "/redfish/v1/Chassis/1"
	redfishPower    = "/redfish/v1/Chassis/1/Power"
)

// defaultSessions is how many sessions a simulated service has room for; real
// controllers have 4 to 16.
const defaultSessions = 8

// RedfishFaults bend a simulated service.
type RedfishFaults struct {
	Hang        bool     // takes requests and answers none
	Sessions    int      // room for so many; 0: 8
	NoSessions  bool     // has no session service: a name and a password with each request
	RefuseMode  bool     // refuses a boot override that names BIOS or UEFI
	RefuseAlway bool     // refuses an override that is to stay
	Forgetful   bool     // accepts overrides and keeps none
	Systems     int      // in its chassis; 0: one
	ResetTypes  []string // that it allows; nil: On, ForceOff, GracefulShutdown, ForceRestart
	Status      int      // answers everything with that status; 0: no
	Login       Refusal  // of each login; zero: none
	NoLocation  bool     // tells a session's path in the body alone
	Slash       bool     // ends paths of sessions, in their list, with one
	Strangers   int      // sessions of another user, in the list
	Closes      bool     // closes each connection after one answer
	NoMatch     bool     // takes no entity tag for its own
}

// Refusal is an error response: a message of DMTF's Base registry. The sentence may
// quote what was sent: "%s" is the password.
type Refusal struct {
	Status      int
	ID, Message string
}

// Redfish simulates the Redfish service of a controller in front of a machine of the
// lab: what DMTF's DSP0266 1.20 says of sessions, entity tags, actions and errors, for
// one ComputerSystem with power and a boot override. There is no event service, no
// virtual media and no account management.
type Redfish struct {
	cfg  Config
	http *http.Server
	wg   sync.WaitGroup

	mu       sync.Mutex
	faults   RedfishFaults
	tokens   map[string]string // session's ID by token
	next     int
	log      []string // requests that were let in
	released chan struct{}
}

// ServeRedfish answers on l, which it owns from now on, until Close, by TLS with a
// certificate that nobody has signed, as controllers come.
func ServeRedfish(l net.Listener, cfg Config) (*Redfish, error) {
	cert, err := selfSigned(cfg.Name)
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	r := &Redfish{cfg: cfg, tokens: make(map[string]string), released: make(chan struct{})}
	if r.cfg.Log == nil {
		r.cfg.Log = slog.New(slog.DiscardHandler)
	}
	r.http = &http.Server{
		Handler: http.HandlerFunc(r.handle), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ErrorLog:  slog.NewLogLogger(r.cfg.Log.Handler(), slog.LevelDebug),
	}
	r.wg.Go(func() {
		if err := r.http.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			r.cfg.Log.Error("virtual Redfish service stopped", "server", cfg.Name, "err", err)
		}
	})
	return r, nil
}

// Close answers nobody any more; the machine stays as it is.
func (r *Redfish) Close() error {
	close(r.released)
	err := r.http.Close()
	r.wg.Wait()
	return err
}

// Bend has the service misbehave from now on; the zero value ends it.
func (r *Redfish) Bend(f RedfishFaults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = f
}

// Forget ends all sessions, as a restart of the controller does.
func (r *Redfish) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// Sessions is how many are open.
func (r *Redfish) Sessions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tokens)
}

// Requests lists method and path of what was let in, in the order of arrival.
func (r *Redfish) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// object is a JSON object.
type object map[string]any

func link(path string) object { return object{"@odata.id": path} }

func collection(path, kind string, members ...string) object {
	list := []object{}
	for _, m := range members {
		list = append(list, link(m))
	}
	return object{"@odata.id": path, "@odata.type": "#" + kind + "." + kind, "Name": kind, "Members": list, "Members@odata.count": len(list)}
}

// refusal is an error response (DSP0266, 8.6).
type refusal struct {
	status  int
	id      string // of the Base message registry
	message string
}

func (r *refusal) write(w http.ResponseWriter) {
	if r.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="redfish"`)
	}
	answer(w, r.status, object{"error": object{
		"code": "Base.1.18.GeneralError", "message": "see @Message.ExtendedInfo",
		"@Message.ExtendedInfo": []object{{"@odata.type": "#Message.v1_1_2.Message", "MessageId": "Base.1.18." + r.id, "Message": r.message}},
	}})
}

func answer(w http.ResponseWriter, status int, body any) {
	h := w.Header()
	h.Set("OData-Version", "4.0")
	h.Set("Cache-Control", "no-cache")
	if body == nil {
		w.WriteHeader(status)
		return
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // who asked may be gone
}

func (r *Redfish) handle(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	f := r.faults
	r.mu.Unlock()
	path := strings.TrimSuffix(req.URL.Path, "/")
	if f.Closes {
		w.Header().Set("Connection", "close")
	}
	switch {
	case f.Hang:
		select {
		case <-req.Context().Done():
		case <-r.released:
		}
		return
	case f.Status != 0:
		(&refusal{f.Status, "InternalError", "it does not work today"}).write(w)
		return
	case path == "/redfish":
		answer(w, http.StatusOK, object{"v1": redfishRoot})
		return
	case path+"/" == redfishRoot: // for everybody (DSP0266, 13.3)
		answer(w, http.StatusOK, r.root(f))
		return
	case path == redfishSessions && req.Method == http.MethodPost && !f.NoSessions:
		r.login(w, req, f)
		return
	}
	if !r.authentic(req, f) {
		(&refusal{http.StatusUnauthorized, "NoValidSession", "There is no valid session established with the implementation."}).write(w)
		return
	}
	r.mu.Lock()
	r.log = append(r.log, req.Method+" "+path)
	r.mu.Unlock()
	if no := r.route(w, req, path, f); no != nil {
		no.write(w)
	}
}

func (r *Redfish) root(f RedfishFaults) object {
	o := object{
		"@odata.id": redfishRoot, "@odata.type": "#ServiceRoot.v1_16_1.ServiceRoot", "Id": "RootService", "Name": "Root Service",
		"RedfishVersion": "1.20.0", "UUID": "92384634-2938-2342-8820-489239905423", "Systems": link(redfishSystems), "Chassis": link("/redfish/v1/Chassis"),
		"Links": object{"Sessions": link(redfishSessions)}, "SessionService": link("/redfish/v1/SessionService"),
	}
	if f.NoSessions {
		delete(o, "SessionService")
		delete(o, "Links")
	}
	return o
}

// known compares a name and a password.
func (r *Redfish) known(user, password string) bool {
	return subtle.ConstantTimeCompare([]byte(user), []byte(r.cfg.User))&subtle.ConstantTimeCompare([]byte(password), []byte(r.cfg.Password)) == 1
}

func (r *Redfish) authentic(req *http.Request, f RedfishFaults) bool {
	if user, password, ok := req.BasicAuth(); ok {
		return r.known(user, password)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.tokens[req.Header.Get("X-Auth-Token")]
	return ok && !f.NoSessions
}

// login makes a session (DSP0266, 13.3.4).
func (r *Redfish) login(w http.ResponseWriter, req *http.Request, f RedfishFaults) {
	var body struct{ UserName, Password string }
	if no := decode(req, &body); no != nil {
		no.write(w)
		return
	}
	if no := f.Login; no.Status != 0 {
		(&refusal{no.Status, no.ID, strings.ReplaceAll(no.Message, "%s", body.Password)}).write(w)
		return
	}
	if !r.known(body.UserName, body.Password) {
		(&refusal{http.StatusUnauthorized, "ResourceAtUriUnauthorized", "While accessing the resource, the service received an authorization error."}).write(w)
		return
	}
	room := f.Sessions
	if room == 0 {
		room = defaultSessions
	}
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // never fails
	token := hex.EncodeToString(secret)
	r.mu.Lock()
	if len(r.tokens) >= room {
		r.mu.Unlock()
		(&refusal{http.StatusServiceUnavailable, "SessionLimitExceeded", "The session establishment failed due to the number of simultaneous sessions exceeding the limit of the implementation."}).write(w)
		return
	}
	r.next++
	id := fmt.Sprint(r.next)
	r.tokens[token] = id
	r.mu.Unlock()
	w.Header().Set("X-Auth-Token", token)
	if !f.NoLocation {
		w.Header().Set("Location", redfishSessions+"/"+id)
	}
	answer(w, http.StatusCreated, r.session(id))
}

func (r *Redfish) session(id string) object {
	return object{"@odata.id": redfishSessions + "/" + id, "@odata.type": "#Session.v1_7_1.Session", "Id": id, "Name": "Session " + id, "UserName": r.cfg.User}
}

func decode(req *http.Request, into any) *refusal {
	if err := json.NewDecoder(http.MaxBytesReader(nil, req.Body, 64<<10)).Decode(into); err != nil {
		return &refusal{http.StatusBadRequest, "MalformedJSON", "The request body submitted was malformed JSON."}
	}
	return nil
}

var errNoResource = &refusal{http.StatusNotFound, "ResourceMissingAtURI", "The resource was not found."}

// route answers who has proved who it is.
func (r *Redfish) route(w http.ResponseWriter, req *http.Request, path string, f RedfishFaults) *refusal {
	if id, ok := strings.CutPrefix(path, redfishSessions+"/"); ok && !f.NoSessions {
		return r.routeSession(w, req, id, f)
	}
	switch req.Method + " " + path {
	case "PATCH " + redfishSystem:
		return r.patch(w, req, f)
	case "POST " + redfishReset:
		return r.reset(w, req, f)
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return &refusal{http.StatusMethodNotAllowed, "OperationNotAllowed", "The HTTP method is not allowed on this resource."}
	}
	o := r.resource(path, f)
	if o == nil {
		return errNoResource
	}
	if tag, ok := o["@odata.etag"].(string); ok {
		w.Header().Set("ETag", tag)
	}
	answer(w, http.StatusOK, o)
	return nil
}

func (r *Redfish) routeSession(w http.ResponseWriter, req *http.Request, id string, f RedfishFaults) *refusal {
	if req.Method == http.MethodGet && slices.Contains(strangers(f), id) {
		s := r.session(id)
		s["UserName"] = "operator"
		answer(w, http.StatusOK, s)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, have := range r.tokens {
		if have != id {
			continue
		}
		switch req.Method {
		case http.MethodGet:
			answer(w, http.StatusOK, r.session(id))
		case http.MethodDelete:
			delete(r.tokens, token)
			answer(w, http.StatusNoContent, nil)
		default:
			return &refusal{http.StatusMethodNotAllowed, "OperationNotAllowed", "The HTTP method is not allowed on this resource."}
		}
		return nil
	}
	return errNoResource
}

// strangers are the IDs of another user's sessions.
func strangers(f RedfishFaults) (ids []string) {
	for n := range f.Strangers {
		ids = append(ids, fmt.Sprintf("operator-%d", n+1))
	}
	return ids
}

// resource is what a path reads as; nil: nothing.
func (r *Redfish) resource(path string, f RedfishFaults) object {
	switch path {
	case "/redfish/v1/SessionService":
		return object{"@odata.id": path, "@odata.type": "#SessionService.v1_1_9.SessionService", "Id": "SessionService", "Name": "Session Service", "ServiceEnabled": true, "Sessions": link(redfishSessions)}
	case redfishSessions:
		r.mu.Lock()
		defer r.mu.Unlock()
		ids := append(slices.Collect(maps.Values(r.tokens)), strangers(f)...)
		slices.Sort(ids)
		var members []string
		for _, id := range ids {
			if f.Slash {
				id += "/"
			}
			members = append(members, redfishSessions+"/"+id)
		}
		return collection(path, "SessionCollection", members...)
	case redfishSystems:
		members := []string{redfishSystem}
		for n := 2; n <= f.Systems; n++ {
			members = append(members, fmt.Sprint(redfishSystems, "/", n))
		}
		return collection(path, "ComputerSystemCollection", members...)
	case redfishSystem:
		return r.system(f)
	case "/redfish/v1/Chassis":
		return collection(path, "ChassisCollection", redfishChassis)
	case redfishChassis:
		return object{"@odata.id": path, "@odata.type": "#Chassis.v1_25_0.Chassis", "Id": "1", "Name": "Chassis", "ChassisType": "RackMount", "Power": link(redfishPower)}
	case redfishPower:
		watts := 8
		if r.cfg.Machine.State().On {
			watts = 121
		}
		return object{"@odata.id": path, "@odata.type": "#Power.v1_7_3.Power", "Id": "Power", "Name": "Power", "PowerControl": []object{{"@odata.id": path + "#/PowerControl/0", "MemberId": "0", "PowerConsumedWatts": watts}}}
	}
	return nil
}

var (
	allResets   = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart"}
	redfishBoot = map[machine.Device]string{machine.Default: "None", machine.Network: "Pxe", machine.Disk: "Hdd"}
)

func (r *Redfish) system(f RedfishFaults) object {
	s := r.cfg.Machine.State()
	power := "Off"
	if s.On {
		power = "On"
	}
	enabled, mode := "Disabled", "Legacy"
	switch {
	case s.Boot.Device == machine.Default:
	case s.Boot.Persistent:
		enabled = "Continuous"
	default:
		enabled = "Once"
	}
	if s.Boot.EFI {
		mode = "UEFI"
	}
	allowed := f.ResetTypes
	if allowed == nil {
		allowed = allResets
	}
	o := object{
		"@odata.id": redfishSystem, "@odata.type": "#ComputerSystem.v1_22_0.ComputerSystem", "Id": "1", "Name": r.cfg.Name, "SystemType": "Physical",
		"PowerState": power, "Links": object{"Chassis": []object{link(redfishChassis)}},
		"Boot": object{"BootSourceOverrideEnabled": enabled, "BootSourceOverrideMode": mode, "BootSourceOverrideTarget": redfishBoot[s.Boot.Device],
			"BootSourceOverrideTarget@Redfish.AllowableValues": []string{"None", "Pxe", "Hdd"}},
		"Actions": object{"#ComputerSystem.Reset": object{"target": redfishReset, "ResetType@Redfish.AllowableValues": allowed}},
	}
	o["@odata.etag"] = fmt.Sprintf(`W/"%s-%s-%s-%s"`, power, enabled, mode, redfishBoot[s.Boot.Device])
	return o
}

// patch takes a boot override (DSP0268, ComputerSystem).
func (r *Redfish) patch(w http.ResponseWriter, req *http.Request, f RedfishFaults) *refusal {
	var body struct {
		Boot *struct{ BootSourceOverrideEnabled, BootSourceOverrideTarget, BootSourceOverrideMode *string }
	}
	if no := decode(req, &body); no != nil {
		return no
	}
	s := r.cfg.Machine.State()
	if tag := req.Header.Get("If-Match"); tag != "" && (f.NoMatch || tag != "*" && tag != r.system(f)["@odata.etag"]) {
		return &refusal{http.StatusPreconditionFailed, "PreconditionFailed", "The ETag supplied did not match the ETag required to change this resource."}
	}
	if body.Boot == nil {
		return &refusal{http.StatusBadRequest, "PropertyNotWritable", "There is no property that can be written."}
	}
	o := s.Boot
	if m := body.Boot.BootSourceOverrideMode; m != nil {
		if f.RefuseMode || *m != "UEFI" && *m != "Legacy" {
			return &refusal{http.StatusBadRequest, "PropertyValueNotInList", "The value of BootSourceOverrideMode is not in the list of acceptable values."}
		}
		o.EFI = *m == "UEFI"
	}
	if t := body.Boot.BootSourceOverrideTarget; t != nil {
		found := false
		for device, name := range redfishBoot {
			if name == *t {
				o.Device, found = device, true
			}
		}
		if !found {
			return &refusal{http.StatusBadRequest, "PropertyValueNotInList", "The value of BootSourceOverrideTarget is not in the list of acceptable values."}
		}
	}
	if e := body.Boot.BootSourceOverrideEnabled; e != nil {
		switch {
		case *e == "Continuous" && f.RefuseAlway, *e != "Once" && *e != "Continuous" && *e != "Disabled":
			return &refusal{http.StatusBadRequest, "PropertyValueNotInList", "The value of BootSourceOverrideEnabled is not in the list of acceptable values."}
		case *e == "Disabled":
			o = machine.Override{}
		default:
			o.Persistent = *e == "Continuous"
		}
	}
	if !f.Forgetful {
		if err := r.cfg.Machine.SetBoot(req.Context(), o); err != nil {
			return &refusal{http.StatusInternalServerError, "InternalError", err.Error()}
		}
	}
	answer(w, http.StatusOK, r.system(f))
	return nil
}

// reset is ComputerSystem's action.
func (r *Redfish) reset(w http.ResponseWriter, req *http.Request, f RedfishFaults) *refusal {
	var body struct{ ResetType string }
	if no := decode(req, &body); no != nil {
		return no
	}
	allowed := f.ResetTypes
	if allowed == nil {
		allowed = allResets
	}
	if !slices.Contains(allowed, body.ResetType) {
		return &refusal{http.StatusBadRequest, "ActionParameterValueNotInList", "The value of ResetType is not in the list of acceptable values."}
	}
	m, err := r.cfg.Machine, error(nil)
	switch body.ResetType {
	case "On", "ForceOn":
		err = m.PowerOn(req.Context())
	case "ForceOff":
		err = m.PowerOff(req.Context())
	case "GracefulShutdown":
		err = m.SoftOff(req.Context())
	case "PushPowerButton":
		if m.State().On {
			err = m.SoftOff(req.Context())
		} else {
			err = m.PowerOn(req.Context())
		}
	case "ForceRestart":
		err = m.Reset(req.Context())
	default:
		return &refusal{http.StatusNotImplemented, "ActionNotSupported", "The action is not supported by the resource."}
	}
	if err != nil {
		return &refusal{http.StatusInternalServerError, "InternalError", err.Error()}
	}
	answer(w, http.StatusNoContent, nil)
	return nil
}
