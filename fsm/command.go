package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"bmc/fsm/logpb"
)

// MaxCommand bounds an encoded command, bytes. An inventory of 10,000 servers
// fits.
const MaxCommand = 16 << 20

// Encode makes the log entry of a command.
func Encode(c *logpb.Command) ([]byte, error) {
	if c.GetHeader() == nil || c.GetCommand() == nil {
		return nil, errors.New("a command needs a header and a body")
	}
	b, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("encode command: %d bytes are more than %d", len(b), MaxCommand)
	}
	return b, nil
}

// Decode reads a log entry. An entry that a newer version wrote is an error, in
// whatever part of it the news is: to skip it would make replicas differ.
func Decode(b []byte) (*logpb.Command, error) {
	c := new(logpb.Command)
	// What has the same length without its unknown fields has none: known fields
	// are never longer as we encode them. To look at each message takes longer.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if proto.Size(c) != len(b) {
		c = new(logpb.Command)
		if err := proto.Unmarshal(b, c); err != nil {
			return nil, fmt.Errorf("it is damaged: %w", err)
		}
		if hasUnknown(c.ProtoReflect()) {
			return nil, errors.New("it has fields that this version does not know: a newer version wrote it")
		}
	}
	if c.GetCommand() == nil {
		return nil, errors.New("it holds no command")
	}
	if c.Header == nil {
		c.Header = new(logpb.Header)
	}
	return c, nil
}

func hasUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i, l := 0, v.List(); i < l.Len() && !found; i++ {
				found = hasUnknown(l.Get(i).Message())
			}
		default:
			found = hasUnknown(v.Message())
		}
		return !found
	})
	return found
}

// Name is the command's name as the audit and metrics have it: "create_server".
func Name(c *logpb.Command) string {
	m := c.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("command")); f != nil {
		return string(f.Name())
	}
	return ""
}

func clone(c *logpb.Command) *logpb.Command {
	c = proto.Clone(c).(*logpb.Command)
	if c.Header == nil {
		c.Header = new(logpb.Header)
	}
	return c
}
