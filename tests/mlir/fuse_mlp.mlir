module @jit_block attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 4 : i32, neuron.mesh = {axes = [["tp", 4]], device_ids = array<i64>}} {
  func.func public @main(%arg0: tensor<4x16xf32> {neuron.global_type = tensor<4x16xf32>}, %arg1: tensor<16x8xf32> {neuron.dim_axes = [[], ["tp"]], neuron.global_type = tensor<16x32xf32>}, %arg2: tensor<8xf32> {neuron.dim_axes = [["tp"]], neuron.global_type = tensor<32xf32>}, %arg3: tensor<8x16xf32> {neuron.dim_axes = [["tp"], []], neuron.global_type = tensor<32x16xf32>}, %arg4: tensor<16xf32> {neuron.global_type = tensor<16xf32>}) -> (tensor<4x16xf32> {neuron.global_type = tensor<4x16xf32>}) {
    %0 = stablehlo.composite "neuron.matmul" %arg0, %arg1, %arg2 {decomposition = @neuron.matmul.0} : (tensor<4x16xf32>, tensor<16x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
    %1 = stablehlo.composite "neuron.matmul" %0, %arg3 {decomposition = @neuron.matmul.1} : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %2 = "stablehlo.all_reduce"(%1) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
    ^bb0(%arg5: tensor<f32>, %arg6: tensor<f32>):
      %4 = stablehlo.add %arg5, %arg6 : tensor<f32>
      stablehlo.return %4 : tensor<f32>
    }) : (tensor<4x16xf32>) -> tensor<4x16xf32>
    %3 = stablehlo.composite "neuron.elementwise" %2, %arg4, %arg0 {decomposition = @neuron.elementwise.0} : (tensor<4x16xf32>, tensor<16xf32>, tensor<4x16xf32>) -> tensor<4x16xf32>
    return %3 : tensor<4x16xf32>
  }
  func.func private @neuron.matmul.0(%arg0: tensor<4x16xf32>, %arg1: tensor<16x8xf32>, %arg2: tensor<8xf32>) -> tensor<4x8xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<4x16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [1] : (tensor<8xf32>) -> tensor<1x8xf32>
    %2 = stablehlo.broadcast_in_dim %1, dims = [0, 1] : (tensor<1x8xf32>) -> tensor<4x8xf32>
    %3 = stablehlo.add %0, %2 : tensor<4x8xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %4 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %5 = stablehlo.maximum %3, %4 : tensor<4x8xf32>
    return %5 : tensor<4x8xf32>
  }
  func.func private @neuron.matmul.1(%arg0: tensor<4x8xf32>, %arg1: tensor<8x16xf32>) -> tensor<4x16xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    return %0 : tensor<4x16xf32>
  }
  func.func private @neuron.elementwise.0(%arg0: tensor<4x16xf32>, %arg1: tensor<16xf32>, %arg2: tensor<4x16xf32>) -> tensor<4x16xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [1] : (tensor<16xf32>) -> tensor<1x16xf32>
    %1 = stablehlo.broadcast_in_dim %0, dims = [0, 1] : (tensor<1x16xf32>) -> tensor<4x16xf32>
    %2 = stablehlo.add %arg0, %1 : tensor<4x16xf32>
    %3 = stablehlo.add %arg2, %2 : tensor<4x16xf32>
    return %3 : tensor<4x16xf32>
  }
}
