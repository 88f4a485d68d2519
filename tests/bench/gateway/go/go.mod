module hearth.test/gatewaybench

go 1.26.0
