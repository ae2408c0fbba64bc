module @jit_flat attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 4 : i32, neuron.hbm_bytes = 14464 : i64, neuron.mesh = {axes = [["tp", 4]], device_ids = array<i64>}} {
  func.func public @main(%arg0: tensor<1x1x32xf32> {neuron.global_type = tensor<1x1x32xf32>}, %arg1: tensor<i32> {neuron.global_type = tensor<i32>}, %arg2: tensor<1x1x8x8xf32> {neuron.dim_axes = [[], ["tp"], [], []], neuron.global_type = tensor<1x4x8x8xf32>, tf.aliasing_output = 1 : i32}, %arg3: tensor<1x1x8x8xf32> {neuron.dim_axes = [[], ["tp"], [], []], neuron.global_type = tensor<1x4x8x8xf32>, tf.aliasing_output = 2 : i32}, %arg4: tensor<32xf32> {neuron.global_type = tensor<32xf32>}, %arg5: tensor<32xf32> {neuron.global_type = tensor<32xf32>}, %arg6: tensor<32x8xf32> {neuron.dim_axes = [[], ["tp"]], neuron.global_type = tensor<32x32xf32>}, %arg7: tensor<8xf32> {neuron.dim_axes = [["tp"]], neuron.global_type = tensor<32xf32>}, %arg8: tensor<32x8xf32> {neuron.dim_axes = [[], ["tp"]], neuron.global_type = tensor<32x32xf32>}, %arg9: tensor<8xf32> {neuron.dim_axes = [["tp"]], neuron.global_type = tensor<32xf32>}, %arg10: tensor<32x8xf32> {neuron.dim_axes = [[], ["tp"]], neuron.global_type = tensor<32x32xf32>}, %arg11: tensor<8xf32> {neuron.dim_axes = [["tp"]], neuron.global_type = tensor<32xf32>}, %arg12: tensor<8x32xf32> {neuron.dim_axes = [["tp"], []], neuron.global_type = tensor<32x32xf32>}, %arg13: tensor<32xf32> {neuron.global_type = tensor<32xf32>}, %arg14: tensor<32xf32> {neuron.global_type = tensor<32xf32>}, %arg15: tensor<32xf32> {neuron.global_type = tensor<32xf32>}, %arg16: tensor<32x32xf32> {neuron.dim_axes = [[], ["tp"]], neuron.global_type = tensor<32x128xf32>}, %arg17: tensor<32xf32> {neuron.dim_axes = [["tp"]], neuron.global_type = tensor<128xf32>}, %arg18: tensor<32x32xf32> {neuron.dim_axes = [["tp"], []], neuron.global_type = tensor<128x32xf32>}, %arg19: tensor<32xf32> {neuron.global_type = tensor<32xf32>}) -> (tensor<1x1x32xf32> {neuron.global_type = tensor<1x1x32xf32>}, tensor<1x1x8x8xf32> {neuron.dim_axes = [[], ["tp"], [], []], neuron.global_type = tensor<1x4x8x8xf32>}, tensor<1x1x8x8xf32> {neuron.dim_axes = [[], ["tp"], [], []], neuron.global_type = tensor<1x4x8x8xf32>}) attributes {neuron.hbm_offset = array<i64: 0, 128, 192, 448, 704, 832, 960, 1984, 2048, 3072, 3136, 4160, 4224, 5248, 5376, 5504, 5632, 9728, 9856, 13952>} {
    %c = stablehlo.constant {neuron.hbm_offset = array<i64: -1>} dense<8> : tensor<i32>
    %c_0 = stablehlo.constant {neuron.hbm_offset = array<i64: -1>} dense<0> : tensor<i32>
    %0 = stablehlo.composite "neuron.elementwise" %arg1 {decomposition = @neuron.elementwise.0, neuron.hbm_offset = array<i64: 14080>} : (tensor<i32>) -> tensor<8xf32>
    %1 = stablehlo.composite "neuron.normalization" %arg0, %arg4, %arg5 {decomposition = @neuron.normalization.0, neuron.hbm_offset = array<i64: 14144>} : (tensor<1x1x32xf32>, tensor<32xf32>, tensor<32xf32>) -> tensor<1x1x32xf32>
    %2 = stablehlo.compare LT, %arg1, %c_0, SIGNED {neuron.hbm_offset = array<i64: -1>} : (tensor<i32>, tensor<i32>) -> tensor<i1>
    %3 = stablehlo.add %arg1, %c {neuron.hbm_offset = array<i64: -1>} : tensor<i32>
    %4 = stablehlo.select %2, %3, %arg1 {neuron.hbm_offset = array<i64: -1>} : tensor<i1>, tensor<i32>
    %5 = stablehlo.composite "neuron.matmul" %1, %arg6, %arg7 {decomposition = @neuron.matmul.0, neuron.hbm_offset = array<i64: 14272>} : (tensor<1x1x32xf32>, tensor<32x8xf32>, tensor<8xf32>) -> tensor<1x1x8xf32>
    %6 = stablehlo.composite "neuron.matmul" %1, %arg8, %arg9 {decomposition = @neuron.matmul.0, neuron.hbm_offset = array<i64: 14336>} : (tensor<1x1x32xf32>, tensor<32x8xf32>, tensor<8xf32>) -> tensor<1x1x8xf32>
    %7 = stablehlo.composite "neuron.matmul" %1, %arg10, %arg11 {decomposition = @neuron.matmul.0, neuron.hbm_offset = array<i64: 14400>} : (tensor<1x1x32xf32>, tensor<32x8xf32>, tensor<8xf32>) -> tensor<1x1x8xf32>
    %8 = stablehlo.composite "neuron.data_movement" %arg2, %6, %4 {decomposition = @neuron.data_movement.0, neuron.hbm_offset = array<i64: 192>} : (tensor<1x1x8x8xf32>, tensor<1x1x8xf32>, tensor<i32>) -> tensor<1x1x8x8xf32>
    %9 = stablehlo.composite "neuron.data_movement" %arg3, %7, %4 {decomposition = @neuron.data_movement.0, neuron.hbm_offset = array<i64: 448>} : (tensor<1x1x8x8xf32>, tensor<1x1x8xf32>, tensor<i32>) -> tensor<1x1x8x8xf32>
    %10 = stablehlo.composite "neuron.matmul" %5, %8, %0 {decomposition = @neuron.matmul.1, neuron.hbm_offset = array<i64: 14144>} : (tensor<1x1x8xf32>, tensor<1x1x8x8xf32>, tensor<8xf32>) -> tensor<1x1x1x8xf32>
    %11 = stablehlo.composite "neuron.softmax" %10 {decomposition = @neuron.softmax.0, neuron.hbm_offset = array<i64: 14080>} : (tensor<1x1x1x8xf32>) -> tensor<1x1x1x8xf32>
    %12 = stablehlo.composite "neuron.matmul" %11, %9 {decomposition = @neuron.matmul.2, neuron.hbm_offset = array<i64: 14144>} : (tensor<1x1x1x8xf32>, tensor<1x1x8x8xf32>) -> tensor<1x1x1x8xf32>
    %13 = stablehlo.composite "neuron.matmul" %12, %arg12 {decomposition = @neuron.matmul.3, neuron.hbm_offset = array<i64: 14208>} : (tensor<1x1x1x8xf32>, tensor<8x32xf32>) -> tensor<1x1x32xf32>
    %14 = "stablehlo.all_reduce"(%13) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
    ^bb0(%arg20: tensor<f32>, %arg21: tensor<f32>):
      %20 = stablehlo.add %arg20, %arg21 : tensor<f32>
      stablehlo.return %20 : tensor<f32>
    }) {neuron.hbm_offset = array<i64: 14080>} : (tensor<1x1x32xf32>) -> tensor<1x1x32xf32>
    %15:2 = stablehlo.composite "neuron.normalization" %14, %arg13, %arg0, %arg14, %arg15 {decomposition = @neuron.normalization.1, neuron.hbm_offset = array<i64: 14208, 14336>} : (tensor<1x1x32xf32>, tensor<32xf32>, tensor<1x1x32xf32>, tensor<32xf32>, tensor<32xf32>) -> (tensor<1x1x32xf32>, tensor<1x1x32xf32>)
    %16 = stablehlo.composite "neuron.matmul" %15#1, %arg16, %arg17 {decomposition = @neuron.matmul.4, neuron.hbm_offset = array<i64: 14080>} : (tensor<1x1x32xf32>, tensor<32x32xf32>, tensor<32xf32>) -> tensor<1x1x32xf32>
    %17 = stablehlo.composite "neuron.matmul" %16, %arg18 {decomposition = @neuron.matmul.5, neuron.hbm_offset = array<i64: 14336>} : (tensor<1x1x32xf32>, tensor<32x32xf32>) -> tensor<1x1x32xf32>
    %18 = "stablehlo.all_reduce"(%17) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
    ^bb0(%arg20: tensor<f32>, %arg21: tensor<f32>):
      %20 = stablehlo.add %arg20, %arg21 : tensor<f32>
      stablehlo.return %20 : tensor<f32>
    }) {neuron.hbm_offset = array<i64: 14080>} : (tensor<1x1x32xf32>) -> tensor<1x1x32xf32>
    %19 = stablehlo.composite "neuron.elementwise" %18, %arg19, %15#0 {decomposition = @neuron.elementwise.1, neuron.hbm_offset = array<i64: 14336>} : (tensor<1x1x32xf32>, tensor<32xf32>, tensor<1x1x32xf32>) -> tensor<1x1x32xf32>
    return %19, %8, %9 : tensor<1x1x32xf32>, tensor<1x1x8x8xf32>, tensor<1x1x8x8xf32>
  }
  func.func private @neuron.elementwise.0(%arg0: tensor<i32>) -> tensor<8xf32> {
    %0 = stablehlo.iota dim = 0 : tensor<8xi32>
    %1 = stablehlo.broadcast_in_dim %arg0, dims = [] : (tensor<i32>) -> tensor<8xi32>
    %2 = stablehlo.compare LE, %0, %1, SIGNED : (tensor<8xi32>, tensor<8xi32>) -> tensor<8xi1>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %3 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<8xf32>
    %cst_0 = stablehlo.constant dense<-1.000000e+09> : tensor<f32>
    %4 = stablehlo.broadcast_in_dim %cst_0, dims = [] : (tensor<f32>) -> tensor<8xf32>
    %5 = stablehlo.select %2, %3, %4 : tensor<8xi1>, tensor<8xf32>
    return %5 : tensor<8xf32>
  }
  func.func private @neuron.normalization.0(%arg0: tensor<1x1x32xf32>, %arg1: tensor<32xf32>, %arg2: tensor<32xf32>) -> tensor<1x1x32xf32> {
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.add across dimensions = [2] : (tensor<1x1x32xf32>, tensor<f32>) -> tensor<1x1xf32>
    %1 = stablehlo.broadcast_in_dim %0, dims = [0, 1] : (tensor<1x1xf32>) -> tensor<1x1x1xf32>
    %cst_0 = stablehlo.constant dense<3.200000e+01> : tensor<f32>
    %2 = stablehlo.broadcast_in_dim %cst_0, dims = [] : (tensor<f32>) -> tensor<1x1x1xf32>
    %3 = stablehlo.divide %1, %2 : tensor<1x1x1xf32>
    %4 = stablehlo.broadcast_in_dim %3, dims = [0, 1, 2] : (tensor<1x1x1xf32>) -> tensor<1x1x32xf32>
    %5 = stablehlo.subtract %arg0, %4 : tensor<1x1x32xf32>
    %6 = stablehlo.multiply %5, %5 : tensor<1x1x32xf32>
    %7 = stablehlo.reduce(%6 init: %cst) applies stablehlo.add across dimensions = [2] : (tensor<1x1x32xf32>, tensor<f32>) -> tensor<1x1xf32>
    %8 = stablehlo.broadcast_in_dim %7, dims = [0, 1] : (tensor<1x1xf32>) -> tensor<1x1x1xf32>
    %9 = stablehlo.divide %8, %2 : tensor<1x1x1xf32>
    %cst_1 = stablehlo.constant dense<9.99999974E-6> : tensor<f32>
    %10 = stablehlo.broadcast_in_dim %cst_1, dims = [] : (tensor<f32>) -> tensor<1x1x1xf32>
    %11 = stablehlo.add %9, %10 : tensor<1x1x1xf32>
    %12 = stablehlo.rsqrt %11 : tensor<1x1x1xf32>
    %13 = stablehlo.broadcast_in_dim %12, dims = [0, 1, 2] : (tensor<1x1x1xf32>) -> tensor<1x1x32xf32>
    %14 = stablehlo.multiply %5, %13 : tensor<1x1x32xf32>
    %15 = stablehlo.broadcast_in_dim %arg1, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %16 = stablehlo.multiply %14, %15 : tensor<1x1x32xf32>
    %17 = stablehlo.broadcast_in_dim %arg2, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %18 = stablehlo.add %16, %17 : tensor<1x1x32xf32>
    return %18 : tensor<1x1x32xf32>
  }
  func.func private @neuron.matmul.0(%arg0: tensor<1x1x32xf32>, %arg1: tensor<32x8xf32>, %arg2: tensor<8xf32>) -> tensor<1x1x8xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [2] x [0], precision = [DEFAULT, DEFAULT] : (tensor<1x1x32xf32>, tensor<32x8xf32>) -> tensor<1x1x8xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [2] : (tensor<8xf32>) -> tensor<1x1x8xf32>
    %2 = stablehlo.add %0, %1 : tensor<1x1x8xf32>
    return %2 : tensor<1x1x8xf32>
  }
  func.func private @neuron.data_movement.0(%arg0: tensor<1x1x8x8xf32>, %arg1: tensor<1x1x8xf32>, %arg2: tensor<i32>) -> tensor<1x1x8x8xf32> {
    %0 = stablehlo.reshape %arg1 : (tensor<1x1x8xf32>) -> tensor<1x1x1x8xf32>
    %1 = stablehlo.reshape %0 : (tensor<1x1x1x8xf32>) -> tensor<1x1x1x8xf32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %2 = stablehlo.dynamic_update_slice %arg0, %1, %c, %c, %arg2, %c : (tensor<1x1x8x8xf32>, tensor<1x1x1x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x1x8x8xf32>
    return %2 : tensor<1x1x8x8xf32>
  }
  func.func private @neuron.matmul.1(%arg0: tensor<1x1x8xf32>, %arg1: tensor<1x1x8x8xf32>, %arg2: tensor<8xf32>) -> tensor<1x1x1x8xf32> {
    %0 = stablehlo.reshape %arg0 : (tensor<1x1x8xf32>) -> tensor<1x1x1x8xf32>
    %1 = stablehlo.reshape %0 : (tensor<1x1x1x8xf32>) -> tensor<1x1x1x8xf32>
    %2 = stablehlo.dot_general %1, %arg1, batching_dims = [0, 1] x [0, 1], contracting_dims = [3] x [3], precision = [DEFAULT, DEFAULT] : (tensor<1x1x1x8xf32>, tensor<1x1x8x8xf32>) -> tensor<1x1x1x8xf32>
    %cst = stablehlo.constant dense<0.353553385> : tensor<f32>
    %3 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<1x1x1x8xf32>
    %4 = stablehlo.multiply %2, %3 : tensor<1x1x1x8xf32>
    %5 = stablehlo.broadcast_in_dim %arg2, dims = [3] : (tensor<8xf32>) -> tensor<1x1x1x8xf32>
    %6 = stablehlo.add %4, %5 : tensor<1x1x1x8xf32>
    return %6 : tensor<1x1x1x8xf32>
  }
  func.func private @neuron.softmax.0(%arg0: tensor<1x1x1x8xf32>) -> tensor<1x1x1x8xf32> {
    %cst = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.maximum across dimensions = [3] : (tensor<1x1x1x8xf32>, tensor<f32>) -> tensor<1x1x1xf32>
    %1 = stablehlo.broadcast_in_dim %0, dims = [0, 1, 2] : (tensor<1x1x1xf32>) -> tensor<1x1x1x1xf32>
    %2 = stablehlo.broadcast_in_dim %1, dims = [0, 1, 2, 3] : (tensor<1x1x1x1xf32>) -> tensor<1x1x1x8xf32>
    %3 = stablehlo.subtract %arg0, %2 : tensor<1x1x1x8xf32>
    %4 = stablehlo.exponential %3 : tensor<1x1x1x8xf32>
    %cst_0 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %5 = stablehlo.reduce(%4 init: %cst_0) applies stablehlo.add across dimensions = [3] : (tensor<1x1x1x8xf32>, tensor<f32>) -> tensor<1x1x1xf32>
    %6 = stablehlo.broadcast_in_dim %5, dims = [0, 1, 2] : (tensor<1x1x1xf32>) -> tensor<1x1x1x1xf32>
    %7 = stablehlo.broadcast_in_dim %6, dims = [0, 1, 2, 3] : (tensor<1x1x1x1xf32>) -> tensor<1x1x1x8xf32>
    %8 = stablehlo.divide %4, %7 : tensor<1x1x1x8xf32>
    return %8 : tensor<1x1x1x8xf32>
  }
  func.func private @neuron.matmul.2(%arg0: tensor<1x1x1x8xf32>, %arg1: tensor<1x1x8x8xf32>) -> tensor<1x1x1x8xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, batching_dims = [0, 1] x [0, 1], contracting_dims = [3] x [2], precision = [DEFAULT, DEFAULT] : (tensor<1x1x1x8xf32>, tensor<1x1x8x8xf32>) -> tensor<1x1x1x8xf32>
    return %0 : tensor<1x1x1x8xf32>
  }
  func.func private @neuron.matmul.3(%arg0: tensor<1x1x1x8xf32>, %arg1: tensor<8x32xf32>) -> tensor<1x1x32xf32> {
    %0 = stablehlo.reshape %arg0 : (tensor<1x1x1x8xf32>) -> tensor<1x1x1x8xf32>
    %1 = stablehlo.reshape %0 : (tensor<1x1x1x8xf32>) -> tensor<1x1x8xf32>
    %2 = stablehlo.dot_general %1, %arg1, contracting_dims = [2] x [0], precision = [DEFAULT, DEFAULT] : (tensor<1x1x8xf32>, tensor<8x32xf32>) -> tensor<1x1x32xf32>
    return %2 : tensor<1x1x32xf32>
  }
  func.func private @neuron.normalization.1(%arg0: tensor<1x1x32xf32>, %arg1: tensor<32xf32>, %arg2: tensor<1x1x32xf32>, %arg3: tensor<32xf32>, %arg4: tensor<32xf32>) -> (tensor<1x1x32xf32>, tensor<1x1x32xf32>) {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %1 = stablehlo.add %arg0, %0 : tensor<1x1x32xf32>
    %2 = stablehlo.add %arg2, %1 : tensor<1x1x32xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %3 = stablehlo.reduce(%2 init: %cst) applies stablehlo.add across dimensions = [2] : (tensor<1x1x32xf32>, tensor<f32>) -> tensor<1x1xf32>
    %4 = stablehlo.broadcast_in_dim %3, dims = [0, 1] : (tensor<1x1xf32>) -> tensor<1x1x1xf32>
    %cst_0 = stablehlo.constant dense<3.200000e+01> : tensor<f32>
    %5 = stablehlo.broadcast_in_dim %cst_0, dims = [] : (tensor<f32>) -> tensor<1x1x1xf32>
    %6 = stablehlo.divide %4, %5 : tensor<1x1x1xf32>
    %7 = stablehlo.broadcast_in_dim %6, dims = [0, 1, 2] : (tensor<1x1x1xf32>) -> tensor<1x1x32xf32>
    %8 = stablehlo.subtract %2, %7 : tensor<1x1x32xf32>
    %9 = stablehlo.multiply %8, %8 : tensor<1x1x32xf32>
    %10 = stablehlo.reduce(%9 init: %cst) applies stablehlo.add across dimensions = [2] : (tensor<1x1x32xf32>, tensor<f32>) -> tensor<1x1xf32>
    %11 = stablehlo.broadcast_in_dim %10, dims = [0, 1] : (tensor<1x1xf32>) -> tensor<1x1x1xf32>
    %12 = stablehlo.divide %11, %5 : tensor<1x1x1xf32>
    %cst_1 = stablehlo.constant dense<9.99999974E-6> : tensor<f32>
    %13 = stablehlo.broadcast_in_dim %cst_1, dims = [] : (tensor<f32>) -> tensor<1x1x1xf32>
    %14 = stablehlo.add %12, %13 : tensor<1x1x1xf32>
    %15 = stablehlo.rsqrt %14 : tensor<1x1x1xf32>
    %16 = stablehlo.broadcast_in_dim %15, dims = [0, 1, 2] : (tensor<1x1x1xf32>) -> tensor<1x1x32xf32>
    %17 = stablehlo.multiply %8, %16 : tensor<1x1x32xf32>
    %18 = stablehlo.broadcast_in_dim %arg3, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %19 = stablehlo.multiply %17, %18 : tensor<1x1x32xf32>
    %20 = stablehlo.broadcast_in_dim %arg4, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %21 = stablehlo.add %19, %20 : tensor<1x1x32xf32>
    return %2, %21 : tensor<1x1x32xf32>, tensor<1x1x32xf32>
  }
  func.func private @neuron.matmul.4(%arg0: tensor<1x1x32xf32>, %arg1: tensor<32x32xf32>, %arg2: tensor<32xf32>) -> tensor<1x1x32xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [2] x [0], precision = [DEFAULT, DEFAULT] : (tensor<1x1x32xf32>, tensor<32x32xf32>) -> tensor<1x1x32xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %2 = stablehlo.add %0, %1 : tensor<1x1x32xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %3 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<1x1x32xf32>
    %4 = stablehlo.maximum %2, %3 : tensor<1x1x32xf32>
    return %4 : tensor<1x1x32xf32>
  }
  func.func private @neuron.matmul.5(%arg0: tensor<1x1x32xf32>, %arg1: tensor<32x32xf32>) -> tensor<1x1x32xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [2] x [0], precision = [DEFAULT, DEFAULT] : (tensor<1x1x32xf32>, tensor<32x32xf32>) -> tensor<1x1x32xf32>
    return %0 : tensor<1x1x32xf32>
  }
  func.func private @neuron.elementwise.1(%arg0: tensor<1x1x32xf32>, %arg1: tensor<32xf32>, %arg2: tensor<1x1x32xf32>) -> tensor<1x1x32xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [2] : (tensor<32xf32>) -> tensor<1x1x32xf32>
    %1 = stablehlo.add %arg0, %0 : tensor<1x1x32xf32>
    %2 = stablehlo.add %arg2, %1 : tensor<1x1x32xf32>
    return %2 : tensor<1x1x32xf32>
  }
}
