package etcd

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// The four of etcd's calls that a measurement needs; their messages by field number
// (etcd's api/etcdserverpb/rpc.proto): its client would bring a module's worth
// of dependencies into the product.
const (
	MethodPut    = "/etcdserverpb.KV/Put"
	MethodRange  = "/etcdserverpb.KV/Range"
	MethodDelete = "/etcdserverpb.KV/DeleteRange"
	methodStatus = "/etcdserverpb.Maintenance/Status"
)

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot receive into %T", v)
	}
	*b = append([]byte(nil), data...)
	return nil
}

// Invoke makes a call with an encoded message and returns the encoded answer.
func Invoke(ctx context.Context, conn *grpc.ClientConn, method string, req []byte) ([]byte, error) {
	var out []byte
	err := conn.Invoke(ctx, method, req, &out, grpc.ForceCodec(rawCodec{}))
	return out, err
}

func field(b []byte, n protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// Put sets a key; key = 1, value = 2.
func Put(key, value string) []byte { return field(field(nil, 1, key), 2, value) }

// Key names one key, for Range and DeleteRange; key = 1.
func Key(key string) []byte { return field(nil, 1, key) }

// Prefix names every key that begins so; range_end = 2.
func Prefix(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return field(Key(prefix), 2, string(end))
}

// fields calls f with every field of a message.
func fields(b []byte, f func(n protowire.Number, number uint64, data []byte)) error {
	for len(b) > 0 {
		n, typ, k := protowire.ConsumeTag(b)
		if k < 0 {
			return protowire.ParseError(k)
		}
		b = b[k:]
		switch typ {
		case protowire.VarintType:
			v, k := protowire.ConsumeVarint(b)
			if k < 0 {
				return protowire.ParseError(k)
			}
			f(n, v, nil)
			b = b[k:]
		case protowire.BytesType:
			v, k := protowire.ConsumeBytes(b)
			if k < 0 {
				return protowire.ParseError(k)
			}
			f(n, 0, v)
			b = b[k:]
		default:
			k := protowire.ConsumeFieldValue(n, typ, b)
			if k < 0 {
				return protowire.ParseError(k)
			}
			b = b[k:]
		}
	}
	return nil
}

// KV is a key with its value; both point into the answer.
type KV struct{ Key, Value []byte }

// KVs reads a RangeResponse: kvs = 2, of which key = 1, value = 5.
func KVs(b []byte) (kvs []KV, err error) {
	outer := fields(b, func(n protowire.Number, _ uint64, data []byte) {
		if n != 2 {
			return
		}
		var kv KV
		inner := fields(data, func(n protowire.Number, _ uint64, data []byte) {
			switch n {
			case 1:
				kv.Key = data
			case 5:
				kv.Value = data
			}
		})
		kvs = append(kvs, kv)
		err = errors.Join(err, inner)
	})
	return kvs, errors.Join(outer, err)
}

// etcdStatus is a StatusResponse: header = 1 with member_id = 2, leader = 4,
// raftAppliedIndex = 7.
type etcdStatus struct{ member, leader, applied uint64 }

func parseStatus(b []byte) (s etcdStatus, err error) {
	outer := fields(b, func(n protowire.Number, number uint64, data []byte) {
		switch n {
		case 1:
			err = fields(data, func(n protowire.Number, number uint64, _ []byte) {
				if n == 2 {
					s.member = number
				}
			})
		case 4:
			s.leader = number
		case 7:
			s.applied = number
		}
	})
	return s, errors.Join(outer, err)
}
