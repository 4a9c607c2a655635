package main

import (
	"context"

	"bmc/bench/table"
)

func (o options) lists(ctx context.Context, dir string) (rows []table.Row, err error) {
	return nil, nil
}
func (o options) costs(ctx context.Context, dir string) (rows []table.Row, err error) {
	return nil, nil
}
